//! The objects that the provider creates, for each kind of offer. `scripts/kubernetes-test` validates them against the
//! schemas of Kubernetes.

use std::path::PathBuf;

use attune_domain::serve::Engine;
use serde_json::{Value, json};

use super::{URL, config, launch};
use crate::{
    config::kubernetes::KubernetesConfig,
    providers::{
        kubernetes::{job, names::Instance, secret, template::Template},
        provider::Program,
    },
};

/// Returns the settings of each kind of offer, by a name.
fn kinds() -> Vec<(&'static str, Value)> {
    let offer = |rest: &Value| {
        let mut offer = json!({"name": "cpu", "memory_bytes": 8u64 << 30, "threads": 4});
        for (key, value) in rest.as_object().unwrap() {
            offer[key.as_str()] = value.clone();
        }
        json!([offer])
    };
    let gpu = json!({"product": "NVIDIA-A100-SXM4-80GB", "memory_bytes": 80_000_000_000u64, "count": 2});
    let mig = json!({"product": "NVIDIA-A100-SXM4-80GB", "memory_bytes": 10_000_000_000u64,
        "resource": "nvidia.com/mig-1g.10gb"});
    let tolerations = json!([{"key": "team", "value": "ml", "effect": "NoExecute"}, {"key": "any"}]);
    let all = json!({"service_account": "attune-run", "priority_class": "batch", "image_pull_secrets": ["registry"],
        "local_queue": "gpus", "ipv6": true, "metrics_port": 9464, "cuda_image": "attune-node:1-cuda",
        "offer": offer(&json!({"gpu": gpu, "spot": true, "region": "eu-central-1", "tolerations": tolerations,
            "usd_per_hour": 1.5, "node_selector": {"pool": "gpu"}}))});
    vec![
        ("cpu", json!({"offer": offer(&json!({}))})),
        ("mig", json!({"offer": offer(&json!({"gpu": mig}))})),
        ("all", all),
    ]
}

/// Returns the Job and the Secret of a launch, and the Job as it is when it was released.
fn objects(config: &KubernetesConfig, program: Program) -> [Value; 3] {
    let instance = Instance::new("kubernetes", URL);
    let template = Template { config, api_url: URL, instance: &instance };
    let launch = launch(program, "run_0190abcdef0123456789abcdef012345");
    let mut created = job::job(&template, &launch, &config.offers[0]);
    let job = serde_json::to_value(&created).unwrap();
    created.metadata.uid = Some("e1e4fbe7-7efd-41b0-b1aa-774ba5325b41".into());
    let secret = serde_json::to_value(secret::secret(&template, &launch, &created)).unwrap();
    let mut released = job.clone();
    let patch = job::release(config.local_queue.as_deref());
    for (key, value) in patch["metadata"].as_object().unwrap() {
        for (name, value) in value.as_object().unwrap() {
            released["metadata"][key.as_str()][name.as_str()] = value.clone();
        }
    }
    if let Some(suspend) = patch["spec"].get("suspend") {
        released["spec"]["suspend"] = suspend.clone();
    }
    [job, secret, released]
}

fn container(job: &Value) -> &Value {
    &job["spec"]["template"]["spec"]["containers"][0]
}

#[test]
fn a_pod_has_the_whole_offer_and_no_privilege() {
    let config = config(&kinds()[0].1);
    let [job, ..] = objects(&config, Program::Trainer);
    let (spec, container) = (&job["spec"]["template"]["spec"], container(&job));
    assert_eq!(container["resources"]["limits"], json!({"cpu": "4", "memory": "8589934592"}));
    assert_eq!(container["resources"]["limits"], container["resources"]["requests"]);
    assert_eq!((&spec["restartPolicy"], &job["spec"]["backoffLimit"]), (&json!("Never"), &json!(0)));
    assert_eq!(
        (&job["spec"]["activeDeadlineSeconds"], &job["spec"]["ttlSecondsAfterFinished"]),
        (&json!(86_400), &Value::Null)
    );
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let security = &container["securityContext"];
    assert_eq!(
        (&security["readOnlyRootFilesystem"], &security["allowPrivilegeEscalation"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let arguments = json!(["--api-url", URL, "--cache-dir", "/var/lib/attune/cache"]);
    assert_eq!((&container["command"], &container["args"]), (&json!(["attune-trainer"]), &arguments));
    assert!(job["metadata"]["name"].as_str().unwrap().len() <= 63 && spec["tolerations"].is_null());
    assert_eq!(job["spec"]["podFailurePolicy"]["rules"][0]["action"], "FailJob");
}

/// The slots may share a node: each run requests what its plan needs.
#[test]
fn a_run_on_an_offer_with_slots_requests_what_it_needs_and_is_limited_by_the_offer() {
    let mut settings = kinds()[0].1.clone();
    settings["offer"][0]["slots"] = json!(2);
    let memory =
        |program, part: &str| container(&objects(&config(&settings), program)[0])["resources"][part]["memory"].clone();
    assert_eq!(memory(Program::Trainer, "requests"), "1048576");
    assert_eq!(memory(Program::Trainer, "limits"), "8589934592");
    assert_eq!(memory(Program::Serving, "requests"), "8589934592");
}

#[test]
fn a_replica_listens_at_the_address_of_its_pod() {
    let kinds = kinds();
    let listens = |settings: &Value| objects(&config(settings), Program::Serving)[0].clone();
    let (ipv4, ipv6) = (listens(&kinds[0].1), listens(&kinds[2].1));
    assert_eq!(container(&ipv4)["args"][5], "$(POD_IP):8000");
    assert_eq!(container(&ipv6)["args"][5], "[$(POD_IP)]:8000");
    let environment = container(&ipv4)["env"].as_array().unwrap();
    let names: Vec<_> = environment.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ATTUNE_REPLICA_TOKEN", "POD_IP", "HOME", "OMP_NUM_THREADS"]);
    assert_eq!(environment[0]["valueFrom"]["secretKeyRef"]["name"], ipv4["metadata"]["name"]);
}

#[test]
fn another_engine_is_a_sidecar_of_its_bridge() {
    let kinds = kinds();
    let mut settings = kinds[2].1.clone();
    settings["vllm_image"] = json!("vllm/vllm-openai:1");
    settings["engine_arguments"] = json!(["--max-model-len", "4096"]);
    let [job, ..] = objects(&config(&settings), Program::Bridge(Engine::Vllm));
    let spec = &job["spec"]["template"]["spec"];
    let (fetch, engine, bridge) = (&spec["initContainers"][0], &spec["initContainers"][1], container(&job));
    let base = "/var/lib/attune/engine/base";
    assert_eq!(fetch["args"].as_array().unwrap()[4..], ["fetch", "--link", base]);
    assert_eq!((&fetch["command"], &fetch["restartPolicy"]), (&json!(["attune-serving"]), &Value::Null));
    assert_eq!((&engine["image"], &engine["restartPolicy"]), (&json!("vllm/vllm-openai:1"), &json!("Always")));
    let arguments: Vec<_> = engine["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(arguments[0], base);
    for pair in [["--max-lora-rank", "64"], ["--max-loras", "16"], ["--port", "18000"], ["--max-model-len", "4096"]] {
        assert!(arguments.windows(2).any(|two| two == pair), "{pair:?} in {arguments:?}");
    }
    assert_eq!(engine["resources"]["limits"]["nvidia.com/gpu"], "2");
    assert_eq!(engine["resources"]["limits"]["memory"], ((8u64 << 30) - (1 << 30)).to_string());
    assert!(bridge["resources"]["limits"]["nvidia.com/gpu"].is_null());
    assert_eq!(bridge["image"], "attune-node:1");
    let bridge = bridge["args"].as_array().unwrap();
    assert_eq!(bridge[6..8], ["--metrics-listen", "[::]:9464"], "options come before the command");
    assert_eq!(bridge[8..13], ["bridge", "--engine", "vllm", "--engine-url", "http://127.0.0.1:18000"]);
    for container in [fetch, engine] {
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        let own = self::container(&job)["volumeMounts"].as_array().unwrap();
        let mounted = container["volumeMounts"].as_array().unwrap();
        assert!(own.iter().all(|mount| mounted.contains(mount)), "one folder for all: {mounted:?}");
    }
}

#[test]
fn an_engine_without_an_image_is_refused_by_the_name_of_its_key() {
    let config = config(&json!({"lorax_image": "ghcr.io/predibase/lorax:1"}));
    assert_eq!(config.engine_image(Engine::Vllm), Some(("vllm_image", None)));
    assert!(config.engine_image(Engine::Lorax).unwrap().1.is_some());
    assert_eq!(config.engine_image(Engine::Attune), None);
}

#[test]
fn a_replica_publishes_its_metrics_at_a_port_that_prometheus_finds_by_name() {
    let (settings, kinds) = (json!({"metrics_port": 9464}), kinds());
    let [measured, ..] = objects(&config(&settings), Program::Serving);
    assert_eq!(container(&measured)["args"].as_array().unwrap()[6..], ["--metrics-listen", "0.0.0.0:9464"]);
    let ports = json!([{"name": "http", "containerPort": 8000, "protocol": "TCP"},
        {"name": "metrics", "containerPort": 9464, "protocol": "TCP"}]);
    assert_eq!(container(&measured)["ports"], ports);
    // The chart's PodMonitor selects these.
    let labels = &measured["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        (&labels["app.kubernetes.io/managed-by"], &labels["app.kubernetes.io/component"]),
        (&json!("attune"), &json!("serving"))
    );
    let [ipv6, ..] = objects(&config(&kinds[2].1), Program::Serving);
    assert_eq!(container(&ipv6)["args"][7], "[::]:9464");
    let [none, ..] = objects(&config(&kinds[0].1), Program::Serving);
    assert_eq!(
        (container(&none)["args"].as_array().unwrap().len(), &container(&none)["ports"]),
        (6, &json!([ports[0]]))
    );
    // A trainer's progress is counted by the API.
    let [trainer, ..] = objects(&config(&settings), Program::Trainer);
    assert!(container(&trainer)["ports"].is_null() && !trainer.to_string().contains("metrics"));
}

#[test]
fn an_offer_chooses_its_nodes_and_its_image() {
    let kinds = kinds();
    let [all, ..] = objects(&config(&kinds[2].1), Program::Trainer);
    let spec = &all["spec"]["template"]["spec"];
    assert_eq!(container(&all)["image"], "attune-node:1-cuda");
    assert_eq!(container(&all)["resources"]["limits"]["nvidia.com/gpu"], "2");
    let keys = |terms: &Value| -> Vec<String> {
        let expressions = terms["matchExpressions"].as_array().unwrap().iter();
        expressions.map(|one| one["key"].as_str().unwrap().to_owned()).collect()
    };
    let affinity = &spec["affinity"]["nodeAffinity"];
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0];
    let wanted = ["kubernetes.io/os", "kubernetes.io/arch", "topology.kubernetes.io/region", "nvidia.com/gpu.product"];
    assert_eq!(keys(required), wanted);
    assert!(affinity["preferredDuringSchedulingIgnoredDuringExecution"].is_null());
    let tolerated: Vec<_> = spec["tolerations"].as_array().unwrap().iter().map(|one| one["key"].clone()).collect();
    let wanted =
        ["nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "team", "any"];
    assert_eq!(tolerated, wanted);
    assert_eq!(spec["nodeSelector"], json!({"pool": "gpu"}));
    let [mig, ..] = objects(&config(&kinds[1].1), Program::Trainer);
    assert_eq!(container(&mig)["resources"]["requests"]["nvidia.com/mig-1g.10gb"], "1");
    assert_eq!(container(&mig)["image"], "attune-node:1");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "scripts/kubernetes-test passes the folder in this variable")]
fn every_object_is_written_for_validation() {
    let folder = std::env::var("ATTUNE_KUBERNETES_OBJECTS").map(PathBuf::from);
    let mut written = 0;
    for (kind, settings) in kinds() {
        for program in [Program::Trainer, Program::Serving] {
            for (part, object) in ["job", "secret", "released"].iter().zip(objects(&config(&settings), program)) {
                assert!(object["apiVersion"].is_string() && object["kind"].is_string(), "{object}");
                written += 1;
                if let Ok(folder) = &folder {
                    let path = folder.join(format!("{kind}-{}-{part}.json", program.name()));
                    std::fs::write(path, object.to_string()).unwrap();
                }
            }
        }
    }
    assert_eq!(written, 18);
}
