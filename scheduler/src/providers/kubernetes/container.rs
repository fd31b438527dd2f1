//! The parts of the containers of a pod.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceRequirements, SecretKeySelector,
        SecurityContext, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{names::job_name, secret::TOKEN, template::Template};
use crate::{
    config::kubernetes::KubernetesOffer,
    providers::provider::{Launch, Program},
};

/// The home folder, with the cache of base models.
pub(super) const HOME: &str = "/var/lib/attune";

/// The folders that the program may write, by volume.
pub(super) const FOLDERS: [(&str, &str); 2] = [("work", HOME), ("tmp", "/tmp")];

/// Returns the security context of a container.
pub(super) fn unprivileged() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".into()]) }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Returns the folders that a container may write.
pub(super) fn mounts() -> Vec<VolumeMount> {
    FOLDERS.map(|(name, path)| mount(name, path)).into()
}

/// Returns the requests or the limits of a container with this memory.
pub(super) fn resources(offer: &KubernetesOffer, memory_bytes: u64) -> BTreeMap<String, Quantity> {
    let mut resources = BTreeMap::from([
        ("cpu".to_owned(), Quantity(offer.threads.to_string())),
        ("memory".to_owned(), Quantity(memory_bytes.to_string())),
    ]);
    resources.extend(offer.gpu.iter().map(|gpu| (gpu.resource.clone(), Quantity(gpu.count.to_string()))));
    resources
}

/// Returns the limits of a container, which are its requests too.
pub(super) fn limits(resources: BTreeMap<String, Quantity>) -> ResourceRequirements {
    ResourceRequirements {
        limits: Some(resources.clone()),
        requests: Some(resources),
        ..ResourceRequirements::default()
    }
}

/// Returns the arguments of all programs.
pub(super) fn common_arguments(template: &Template<'_>) -> Vec<String> {
    let cache = format!("{HOME}/cache");
    vec!["--api-url".into(), template.api_url.to_owned(), "--cache-dir".into(), cache]
}

/// Returns the environment. `POD_IP` is before the arguments that use it: replicas report this address.
pub(super) fn environment(launch: &Launch) -> Vec<EnvVar> {
    let plain = |name: &str, value: String| EnvVar { name: name.into(), value: Some(value), value_from: None };
    let from = |name: &str, source| EnvVar { name: name.into(), value: None, value_from: Some(source) };
    let token = match launch.program {
        Program::Trainer => "ATTUNE_RUN_TOKEN",
        Program::Serving | Program::Bridge(_) => "ATTUNE_REPLICA_TOKEN",
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

/// Returns the mount of a volume.
pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.into(), mount_path: path.into(), ..VolumeMount::default() }
}
