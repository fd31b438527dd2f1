//! The pod of a Job: one container without privileges, whose root file system is read-only.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, LocalObjectReference,
        ObjectFieldSelector, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecretKeySelector,
        SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    names::{component, job_name},
    scheduling,
    secret::TOKEN,
    template::Template,
};
use crate::{
    config::kubernetes::{KubernetesConfig, KubernetesOffer},
    providers::provider::{Launch, Program},
};

/// The home folder, with the cache of base models.
const HOME: &str = "/var/lib/attune";

/// The folders that the program may write, by volume.
const FOLDERS: [(&str, &str); 2] = [("work", HOME), ("tmp", "/tmp")];

/// Returns the specification of a launch's pod.
pub(super) fn spec(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> PodSpec {
    let config = template.config;
    let secrets = config.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        affinity: Some(scheduling::affinity(offer)),
        automount_service_account_token: Some(false),
        containers: vec![container(template, launch, offer)],
        enable_service_links: Some(false),
        image_pull_secrets: Some(secrets.collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        node_selector: Some(offer.node_selector.clone()).filter(|labels| !labels.is_empty()),
        priority_class_name: config.priority_class.clone(),
        restart_policy: Some("Never".into()),
        security_context: Some(pod_security(config)),
        service_account_name: config.service_account.clone(),
        termination_grace_period_seconds: Some(i64::from(config.grace_seconds)),
        tolerations: Some(scheduling::tolerations(offer)).filter(|all| !all.is_empty()),
        volumes: Some(FOLDERS.map(|(name, _)| volume(name)).into()),
        ..PodSpec::default()
    }
}

fn container(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> Container {
    let config = template.config;
    let cuda = config.cuda_image.as_ref().filter(|_| offer.gpu.is_some());
    Container {
        name: component(launch.program).into(),
        image: Some(cuda.unwrap_or(&config.image).clone()),
        command: Some(vec![launch.program.name().into()]),
        args: Some(arguments(template, launch.program)),
        env: Some(environment(launch)),
        ports: (launch.program == Program::Serving).then(|| ports(config)),
        resources: Some(ResourceRequirements {
            limits: Some(resources(offer, offer.memory_bytes)),
            requests: Some(resources(offer, requested(launch, offer))),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".into()]) }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(FOLDERS.map(|(name, path)| mount(name, path)).into()),
        ..Container::default()
    }
}

/// Returns the ports of a replica. Prometheus finds that of its metrics by the name.
fn ports(config: &KubernetesConfig) -> Vec<ContainerPort> {
    let port = |name: &str, port: u16| ContainerPort {
        container_port: i32::from(port),
        name: Some(name.into()),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    let metrics = config.metrics_port.map(|number| port("metrics", number));
    [port("http", config.serving_port)].into_iter().chain(metrics).collect()
}

/// Returns the memory to request. The slots of an offer may share a node: a run requests what its plan needs, with the
/// margin, so that more pods fit. A replica, whose adapters come later, and a run on an offer with one slot request the
/// whole memory.
fn requested(launch: &Launch, offer: &KubernetesOffer) -> u64 {
    match launch.program {
        Program::Trainer if offer.slots > 1 => launch.resources.memory.0.min(offer.memory_bytes),
        Program::Trainer | Program::Serving => offer.memory_bytes,
    }
}

/// Returns the requests or the limits of a pod with this memory.
fn resources(offer: &KubernetesOffer, memory_bytes: u64) -> BTreeMap<String, Quantity> {
    let mut resources = BTreeMap::from([
        ("cpu".to_owned(), Quantity(offer.threads.to_string())),
        ("memory".to_owned(), Quantity(memory_bytes.to_string())),
    ]);
    resources.extend(offer.gpu.iter().map(|gpu| (gpu.resource.clone(), Quantity(gpu.count.to_string()))));
    resources
}

fn arguments(template: &Template<'_>, program: Program) -> Vec<String> {
    let cache = format!("{HOME}/cache");
    let mut arguments = vec!["--api-url".into(), template.api_url.to_owned(), "--cache-dir".into(), cache];
    if program == Program::Serving {
        let port = template.config.serving_port;
        let address = if template.config.ipv6 { "[$(POD_IP)]" } else { "$(POD_IP)" };
        arguments.extend(["--listen".into(), format!("{address}:{port}")]);
        let any = if template.config.ipv6 { "[::]" } else { "0.0.0.0" };
        let metrics = template.config.metrics_port.map(|port| ["--metrics-listen".into(), format!("{any}:{port}")]);
        arguments.extend(metrics.into_iter().flatten());
    }
    arguments
}

/// Returns the environment. `POD_IP` is before the arguments that use it: replicas report this address.
fn environment(launch: &Launch) -> Vec<EnvVar> {
    let plain = |name: &str, value: String| EnvVar { name: name.into(), value: Some(value), value_from: None };
    let from = |name: &str, source| EnvVar { name: name.into(), value: None, value_from: Some(source) };
    let token = match launch.program {
        Program::Trainer => "ATTUNE_RUN_TOKEN",
        Program::Serving => "ATTUNE_REPLICA_TOKEN",
    };
    let secret = SecretKeySelector { key: TOKEN.into(), name: job_name(&launch.name), optional: Some(false) };
    let ip = ObjectFieldSelector { api_version: None, field_path: "status.podIP".into() };
    vec![
        from(token, EnvVarSource { secret_key_ref: Some(secret), ..EnvVarSource::default() }),
        from("POD_IP", EnvVarSource { field_ref: Some(ip), ..EnvVarSource::default() }),
        plain("HOME", HOME.into()),
        plain("OMP_NUM_THREADS", launch.resources.threads.to_string()),
    ]
}

fn pod_security(config: &KubernetesConfig) -> PodSecurityContext {
    let user = i64::from(config.run_as_user);
    PodSecurityContext {
        fs_group: Some(user),
        run_as_group: Some(user),
        run_as_non_root: Some(true),
        run_as_user: Some(user),
        seccomp_profile: Some(SeccompProfile { localhost_profile: None, type_: "RuntimeDefault".into() }),
        ..PodSecurityContext::default()
    }
}

fn volume(name: &str) -> Volume {
    Volume { name: name.into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.into(), mount_path: path.into(), ..VolumeMount::default() }
}
