//! The containers of a replica with another engine. The first one fetches the base model and ends; the engine is a
//! sidecar, which Kubernetes ends after the pod's own container, the bridge. All of them mount one folder.
//!
//! Sources: "Sidecar Containers" in the documentation of Kubernetes; the arguments of `vllm serve` in vLLM's
//! `vllm/engine/arg_utils.py`, and of `lorax-launcher` in LoRAX's `launcher/src/main.rs`.

use std::collections::BTreeMap;

use attune_domain::{bytes::Bytes, serve::Engine};
use k8s_openapi::{
    api::core::v1::{Container, EnvVar},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    container::{HOME, common_arguments, environment, limits, mount, mounts, resources, unprivileged},
    template::Template,
};
use crate::{
    config::kubernetes::{KubernetesConfig, KubernetesOffer},
    providers::provider::{Launch, Program},
};

/// The most memory of the bridge, which the engine lacks.
const BRIDGE_MEMORY: Bytes = Bytes::mib(1024);

/// The processor time of the bridge, in thousandths of a thread.
const BRIDGE_MILLI_CPU: u32 = 500;

/// The volume of the memory that the processes of an engine share, and its path. The default of Kubernetes is 64 MiB.
pub(super) const SHARED_MEMORY: (&str, &str) = ("shm", "/dev/shm");

/// The ports of the engine, of which the first one that is not that of the bridge is used.
const PORTS: [u16; 2] = [18_000, 18_001];

/// Returns the init containers of a launch: none unless it has another engine.
pub(super) fn containers(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> Vec<Container> {
    let Program::Bridge(engine) = launch.program else { return Vec::new() };
    // Without an image, the provider has refused the launch.
    let Some((_, Some(image))) = template.config.engine_image(engine) else { return Vec::new() };
    vec![fetch(template, launch, offer), sidecar(template.config, engine, image, offer)]
}

fn fetch(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> Container {
    let mut arguments = common_arguments(template);
    arguments.extend(["fetch".into(), "--link".into(), base_folder()]);
    Container {
        name: "fetch".into(),
        image: Some(template.config.image.clone()),
        command: Some(vec![launch.program.name().into()]),
        args: Some(arguments),
        env: Some(environment(launch)),
        resources: Some(limits(bridge_resources(offer))),
        security_context: Some(unprivileged()),
        volume_mounts: Some(mounts()),
        ..Container::default()
    }
}

fn sidecar(config: &KubernetesConfig, engine: Engine, image: &str, offer: &KubernetesOffer) -> Container {
    let gpus = offer.gpu.as_ref().map_or(1, |gpu| gpu.count);
    let plain = |name: &str, value: &str| EnvVar { name: name.into(), value: Some(value.into()), value_from: None };
    let (command, arguments) = command(config, engine, gpus);
    let mut mounts = mounts();
    mounts.push(mount(SHARED_MEMORY.0, SHARED_MEMORY.1));
    Container {
        name: engine.name().into(),
        image: Some(image.to_owned()),
        command: Some(command),
        args: Some(arguments),
        env: Some(vec![
            plain("HOME", HOME),
            // The image has no account of this user, by whose name PyTorch names a folder.
            plain("USER", "attune"),
            plain("HF_HUB_OFFLINE", "1"),
            plain("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"),
        ]),
        resources: Some(limits(engine_resources(offer))),
        restart_policy: Some("Always".into()),
        security_context: Some(unprivileged()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// Returns the command of an engine, which listens for its bridge only.
fn command(config: &KubernetesConfig, engine: Engine, gpus: u32) -> (Vec<String>, Vec<String>) {
    let (port, rank, loras) =
        (port(config).to_string(), config.max_lora_rank.to_string(), config.max_loras.to_string());
    let (base, gpus) = (base_folder(), gpus.to_string());
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let (command, mut arguments) = match engine {
        Engine::Lorax => {
            let source = ["--model-id", &base, "--source", "local", "--num-shard", &gpus];
            (words(&["lorax-launcher"]), words(&[&source[..], &["--hostname", "127.0.0.1", "--port", &port]].concat()))
        }
        Engine::Vllm | Engine::Attune => {
            let model = [base.as_str(), "--served-model-name", "base", "--tensor-parallel-size", &gpus];
            let lora = ["--enable-lora", "--max-lora-rank", &rank, "--max-loras", &loras];
            let rest = ["--scheduling-policy", "priority", "--host", "127.0.0.1", "--port", &port];
            (words(&["vllm", "serve"]), words(&[&model[..], &lora, &rest].concat()))
        }
    };
    arguments.extend(config.engine_arguments.iter().cloned());
    (command, arguments)
}

/// Returns the arguments of the bridge to an engine, after those of all programs.
pub(super) fn bridge_arguments(config: &KubernetesConfig, engine: Engine) -> Vec<String> {
    let url = format!("http://127.0.0.1:{}", port(config));
    let rank = config.max_lora_rank.to_string();
    let all = ["bridge", "--engine", engine.name(), "--engine-url", &url, "--max-lora-rank", &rank];
    all.map(str::to_owned).into()
}

/// Returns the resources of the bridge: a small part of the offer.
pub(super) fn bridge_resources(offer: &KubernetesOffer) -> BTreeMap<String, Quantity> {
    [
        ("cpu".to_owned(), Quantity(format!("{BRIDGE_MILLI_CPU}m"))),
        ("memory".to_owned(), Quantity(bridge_memory(offer).to_string())),
    ]
    .into()
}

/// Returns the resources of the engine: the rest of the offer, with its GPUs.
fn engine_resources(offer: &KubernetesOffer) -> BTreeMap<String, Quantity> {
    let mut rest = resources(offer, offer.memory_bytes - bridge_memory(offer));
    let milli = offer.threads.saturating_mul(1000).saturating_sub(BRIDGE_MILLI_CPU);
    rest.insert("cpu".into(), Quantity(format!("{milli}m")));
    rest
}

fn bridge_memory(offer: &KubernetesOffer) -> u64 {
    BRIDGE_MEMORY.0.min(offer.memory_bytes / 4)
}

fn base_folder() -> String {
    format!("{HOME}/engine/base")
}

fn port(config: &KubernetesConfig) -> u16 {
    if config.serving_port == PORTS[0] { PORTS[1] } else { PORTS[0] }
}
