//! The pod of a Job: containers without privileges, whose root file systems are read-only. It has one, or with another
//! engine, that of the bridge.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, LocalObjectReference, PodSecurityContext, PodSpec,
    ResourceRequirements, SeccompProfile, Volume,
};

use super::{
    container::{FOLDERS, common_arguments, environment, limits, mounts, resources, unprivileged},
    engine,
    names::component,
    scheduling,
    template::Template,
};
use crate::{
    config::kubernetes::{KubernetesConfig, KubernetesOffer},
    providers::provider::{Launch, Program},
};

/// Returns the specification of a launch's pod.
pub(super) fn spec(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> PodSpec {
    let config = template.config;
    let secrets = config.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        affinity: Some(scheduling::affinity(offer)),
        automount_service_account_token: Some(false),
        containers: vec![container(template, launch, offer)],
        enable_service_links: Some(false),
        init_containers: Some(engine::containers(template, launch, offer)).filter(|all| !all.is_empty()),
        image_pull_secrets: Some(secrets.collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        node_selector: Some(offer.node_selector.clone()).filter(|labels| !labels.is_empty()),
        priority_class_name: config.priority_class.clone(),
        restart_policy: Some("Never".into()),
        security_context: Some(pod_security(config)),
        service_account_name: config.service_account.clone(),
        termination_grace_period_seconds: Some(i64::from(config.grace_seconds)),
        tolerations: Some(scheduling::tolerations(offer)).filter(|all| !all.is_empty()),
        volumes: Some(volumes(launch.program)),
        ..PodSpec::default()
    }
}

fn container(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> Container {
    let config = template.config;
    // A bridge needs no device.
    let uses_gpu = offer.gpu.is_some() && !matches!(launch.program, Program::Bridge(_));
    let cuda = config.cuda_image.as_ref().filter(|_| uses_gpu);
    Container {
        name: component(launch.program).into(),
        image: Some(cuda.unwrap_or(&config.image).clone()),
        command: Some(vec![launch.program.name().into()]),
        args: Some(arguments(template, launch.program)),
        env: Some(environment(launch)),
        ports: (launch.program != Program::Trainer).then(|| ports(config)),
        resources: Some(requirements(launch, offer)),
        security_context: Some(unprivileged()),
        volume_mounts: Some(mounts()),
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

/// Returns the resources of the pod's own container: the offer, or for a bridge a part of it. The slots of an offer may
/// share a node: a run on one of several requests what its plan needs, with the margin, so that more pods fit. A
/// replica, whose adapters come later, and a run on an offer with one slot request the whole memory.
fn requirements(launch: &Launch, offer: &KubernetesOffer) -> ResourceRequirements {
    let whole = resources(offer, offer.memory_bytes);
    match launch.program {
        Program::Trainer if offer.slots > 1 => ResourceRequirements {
            limits: Some(whole),
            requests: Some(resources(offer, launch.resources.memory.0.min(offer.memory_bytes))),
            ..ResourceRequirements::default()
        },
        Program::Trainer | Program::Serving => limits(whole),
        Program::Bridge(_) => limits(engine::bridge_resources(offer)),
    }
}

fn arguments(template: &Template<'_>, program: Program) -> Vec<String> {
    let mut arguments = common_arguments(template);
    if program != Program::Trainer {
        let port = template.config.serving_port;
        let address = if template.config.ipv6 { "[$(POD_IP)]" } else { "$(POD_IP)" };
        arguments.extend(["--listen".into(), format!("{address}:{port}")]);
        let any = if template.config.ipv6 { "[::]" } else { "0.0.0.0" };
        let metrics = template.config.metrics_port.map(|port| ["--metrics-listen".into(), format!("{any}:{port}")]);
        arguments.extend(metrics.into_iter().flatten());
    }
    if let Program::Bridge(engine) = program {
        arguments.extend(engine::bridge_arguments(template.config, engine));
    }
    arguments
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

fn volumes(program: Program) -> Vec<Volume> {
    let volume = |name: &str, empty: EmptyDirVolumeSource| Volume {
        name: name.into(),
        empty_dir: Some(empty),
        ..Volume::default()
    };
    let mut volumes: Vec<Volume> = FOLDERS.map(|(name, _)| volume(name, EmptyDirVolumeSource::default())).into();
    if let Program::Bridge(_) = program {
        let memory = EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit: None };
        volumes.push(volume(engine::SHARED_MEMORY.0, memory));
    }
    volumes
}
