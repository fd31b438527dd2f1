//! The state of a pod as that of a process. Tenants read the messages, so they contain no output and no name of a node.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, Pod, PodCondition, PodStatus};

use super::error::plain;
use crate::providers::provider::{EndCause, Ended};

/// The reasons of the condition `DisruptionTarget`.
const DISRUPTIONS: [(&str, &str); 5] = [
    ("PreemptionByScheduler", "was preempted by another pod"),
    ("DeletionByTaintManager", "ended because its node failed"),
    ("EvictionByEvictionAPI", "was evicted because its node is drained"),
    ("DeletionByPodGC", "ended because its node was deleted"),
    ("TerminationByKubelet", "was ended by its node, which shuts down or ran short of resources"),
];

/// The reasons of a container that waits for its image.
const IMAGE: [&str; 5] =
    ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"];

/// The reasons of a container that cannot be created, which its node tries again.
const CREATION: [&str; 3] = ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"];

const KILLED: i32 = 128 + 9;

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn condition<'a>(status: &'a PodStatus, kind: &str, value: &str) -> Option<&'a PodCondition> {
    let conditions = status.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == value)
}

/// Returns whether all containers have ended.
pub(super) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Returns whether a container has started.
pub(super) fn has_started(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.is_some_and(|all| {
        all.iter().filter_map(|one| one.state.as_ref()).any(|state| {
            state.running.is_some() || state.terminated.as_ref().is_some_and(|ended| ended.started_at.is_some())
        })
    })
}

/// Returns the reason why a pod has not started yet; `None`: it has.
pub(super) fn pending(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if phase(pod) != "Pending" {
        return None;
    }
    if let Some(condition) = condition(status, "PodScheduled", "False") {
        let message = plain(condition.message.as_deref().unwrap_or_default());
        return Some(match condition.reason.as_deref() {
            Some("SchedulingGated") => "Waiting until the scheduling gates of the pod are removed".into(),
            _ => format!("Waiting for a node of Kubernetes: {message}"),
        });
    }
    let is_scheduled = condition(status, "PodScheduled", "True").is_some();
    Some(match waiting(status) {
        Some(waiting) => reason(waiting),
        None if is_scheduled => "Waiting for the node of Kubernetes to start the container".into(),
        None => "Waiting for Kubernetes to choose a node".into(),
    })
}

fn waiting(status: &PodStatus) -> Option<&ContainerStateWaiting> {
    let containers = status.container_statuses.as_ref()?;
    containers.iter().find_map(|container| container.state.as_ref()?.waiting.as_ref())
}

fn reason(waiting: &ContainerStateWaiting) -> String {
    let name = plain(waiting.reason.as_deref().unwrap_or_default());
    let message = plain(waiting.message.as_deref().unwrap_or_default());
    if IMAGE.contains(&name.as_str()) {
        return format!("Kubernetes cannot pull the image ({name}): {message}");
    }
    if CREATION.contains(&name.as_str()) {
        return format!("Kubernetes cannot create the container ({name}): {message}");
    }
    "Waiting for the node of Kubernetes to start the container".into()
}

/// Returns the end of a pod; `None`: it has not ended.
pub(super) fn end(pod: &Pod) -> Option<Ended> {
    let status = pod.status.as_ref().filter(|_| is_terminal(pod))?;
    let exit = terminated(status);
    if exit.is_some_and(|exit| exit.reason.as_deref() == Some("OOMKilled")) {
        let message = "the Kubernetes pod was killed: it used more memory than its limit";
        return Some(Ended { message: message.into(), cause: EndCause::OutOfMemory });
    }
    // Also after an exit status of 0, with which a program may end on SIGTERM.
    if let Some(how) = disruption(status) {
        return Some(circumstances(format!("the Kubernetes pod {how}")));
    }
    if phase(pod) == "Succeeded" {
        return Some(Ended::program("the Kubernetes pod ended (exit status: 0)"));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(circumstances("the Kubernetes pod was deleted".into()));
    }
    Some(exit.filter(|exit| !never_ran(exit)).map_or_else(|| circumstances(rejection(status, exit)), exited))
}

/// Returns an end that is not the job's fault.
pub(super) fn circumstances(message: String) -> Ended {
    Ended { message, cause: EndCause::Circumstances }
}

fn terminated(status: &PodStatus) -> Option<&ContainerStateTerminated> {
    let containers = status.container_statuses.as_ref()?;
    containers.iter().find_map(|container| container.state.as_ref()?.terminated.as_ref())
}

/// Returns whether the container's program could not be started.
fn never_ran(exit: &ContainerStateTerminated) -> bool {
    matches!(exit.reason.as_deref(), Some("StartError" | "ContainerCannotRun" | "ContainerStatusUnknown"))
        || matches!(exit.exit_code, 126 | 127)
}

/// Returns how the pod was disrupted, if it was.
fn disruption(status: &PodStatus) -> Option<String> {
    if status.reason.as_deref() == Some("Evicted") {
        let message = plain(status.message.as_deref().unwrap_or_default());
        return Some(format!("was evicted: {message}"));
    }
    let reason = condition(status, "DisruptionTarget", "True")?.reason.as_deref().unwrap_or_default();
    let known = DISRUPTIONS.iter().find(|(name, _)| *name == reason);
    Some(known.map_or_else(|| format!("was disrupted ({})", plain(reason)), |(_, how)| (*how).to_owned()))
}

/// Returns the message of a pod whose program never ran.
fn rejection(status: &PodStatus, exit: Option<&ContainerStateTerminated>) -> String {
    let reason = exit.and_then(|exit| exit.reason.as_deref()).or(status.reason.as_deref()).unwrap_or("unknown reason");
    let message = exit.and_then(|exit| exit.message.as_deref()).or(status.message.as_deref()).unwrap_or_default();
    format!("the Kubernetes pod could not start its program ({}): {}", plain(reason), plain(message))
}

fn exited(exit: &ContainerStateTerminated) -> Ended {
    Ended::program(match exit.exit_code {
        KILLED => "the Kubernetes pod was killed (signal: 9), possibly because its node ran out of memory".to_owned(),
        code @ 129..=159 => format!("the Kubernetes pod ended (signal: {})", code - 128),
        code => format!("the Kubernetes pod ended (exit status: {code})"),
    })
}
