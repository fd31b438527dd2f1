//! The state of a pod as that of a process. Tenants read the messages, so they contain no output and no name of a node.

use attune_domain::run::process::{EndCause, WaitKind};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, Pod, PodCondition, PodStatus,
};

use super::error::plain;
use crate::providers::provider::{Ended, Wait};

/// The reasons of the condition `DisruptionTarget`.
const DISRUPTIONS: [(&str, EndCause, &str); 5] = [
    ("PreemptionByScheduler", EndCause::Preempted, "was preempted by another pod"),
    ("DeletionByTaintManager", EndCause::NodeFailed, "ended because its node failed"),
    ("EvictionByEvictionAPI", EndCause::Evicted, "was evicted because its node is drained"),
    ("DeletionByPodGC", EndCause::NodeFailed, "ended because its node was deleted"),
    ("TerminationByKubelet", EndCause::Evicted, "was ended by its node, which shuts down or ran short of resources"),
];

/// The part of the kubelet's message that names the pods whose memory is above their request, on a node without free
/// memory.
const USED_MORE: &str = "has larger consumption of memory";

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
pub(super) fn pending(pod: &Pod) -> Option<Wait> {
    let status = pod.status.as_ref()?;
    if phase(pod) != "Pending" {
        return None;
    }
    if let Some(condition) = condition(status, "PodScheduled", "False") {
        let message = plain(condition.message.as_deref().unwrap_or_default());
        return Some(match condition.reason.as_deref() {
            Some("SchedulingGated") => {
                Wait::new(WaitKind::Held, "Waiting until the scheduling gates of the pod are removed")
            }
            _ => Wait::new(WaitKind::Unschedulable, format!("Waiting for a node of Kubernetes: {message}")),
        });
    }
    let is_scheduled = condition(status, "PodScheduled", "True").is_some();
    Some(match waiting(status) {
        Some(waiting) => reason(waiting),
        None if is_scheduled => container_creating(),
        None => Wait::new(WaitKind::Starting, "Waiting for Kubernetes to choose a node"),
    })
}

/// Returns the state of a container that waits; of several, that of one whose reason is known. The others wait for it.
fn waiting(status: &PodStatus) -> Option<&ContainerStateWaiting> {
    let all = || states(status).filter_map(|state| state.waiting.as_ref());
    let is_known = |waiting: &&ContainerStateWaiting| {
        waiting.reason.as_deref().is_some_and(|reason| IMAGE.contains(&reason) || CREATION.contains(&reason))
    };
    all().find(is_known).or_else(|| all().next())
}

/// Returns the states of all containers, in the order of their starts.
fn states(status: &PodStatus) -> impl Iterator<Item = &ContainerState> {
    let first = status.init_container_statuses.iter().flatten();
    first.chain(status.container_statuses.iter().flatten()).filter_map(|container| container.state.as_ref())
}

fn container_creating() -> Wait {
    Wait::new(WaitKind::ContainerCreating, "Waiting for the node of Kubernetes to start the container")
}

fn reason(waiting: &ContainerStateWaiting) -> Wait {
    let name = plain(waiting.reason.as_deref().unwrap_or_default());
    let message = plain(waiting.message.as_deref().unwrap_or_default());
    if IMAGE.contains(&name.as_str()) {
        let text = format!("Kubernetes cannot pull the image ({name}): {message}");
        return Wait::new(WaitKind::ImagePull, text);
    }
    if CREATION.contains(&name.as_str()) {
        let text = format!("Kubernetes cannot create the container ({name}): {message}");
        return Wait::new(WaitKind::ContainerError, text);
    }
    container_creating()
}

/// Returns the end of a pod; `None`: it has not ended.
pub(super) fn end(pod: &Pod) -> Option<Ended> {
    let status = pod.status.as_ref().filter(|_| is_terminal(pod))?;
    let exit = terminated(status);
    if exit.is_some_and(|exit| exit.reason.as_deref() == Some("OOMKilled")) {
        let message = "the Kubernetes pod was killed: it used more memory than its limit";
        return Some(Ended::new(EndCause::OutOfMemory, message));
    }
    // Also after an exit status of 0, with which a program may end on SIGTERM.
    if let Some((cause, how)) = disruption(status) {
        return Some(Ended::new(cause, format!("the Kubernetes pod {how}")));
    }
    if phase(pod) == "Succeeded" {
        return Some(Ended::program("the Kubernetes pod ended (exit status: 0)"));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Ended::new(EndCause::Stopped, "the Kubernetes pod was deleted"));
    }
    let not_started = || Ended::new(EndCause::NotStarted, rejection(status, exit));
    Some(exit.filter(|exit| !never_ran(exit)).map_or_else(not_started, exited))
}

fn terminated(status: &PodStatus) -> Option<&ContainerStateTerminated> {
    let own = status.container_statuses.iter().flatten();
    let mut ended = own.filter_map(|container| container.state.as_ref()?.terminated.as_ref());
    // Without an end of its own, the pod has failed because of an init container.
    let failed = states(status).filter_map(|state| state.terminated.as_ref()).find(|ended| ended.exit_code != 0);
    ended.next().or(failed)
}

/// Returns whether the container's program could not be started.
fn never_ran(exit: &ContainerStateTerminated) -> bool {
    matches!(exit.reason.as_deref(), Some("StartError" | "ContainerCannotRun" | "ContainerStatusUnknown"))
        || matches!(exit.exit_code, 126 | 127)
}

/// Returns why and how the pod was disrupted, if it was.
fn disruption(status: &PodStatus) -> Option<(EndCause, String)> {
    if status.reason.as_deref() == Some("Evicted") {
        let message = plain(status.message.as_deref().unwrap_or_default());
        let is_too_large = status.message.as_ref().is_some_and(|message| message.contains(USED_MORE));
        let cause = if is_too_large { EndCause::OutOfMemory } else { EndCause::Evicted };
        return Some((cause, format!("was evicted: {message}")));
    }
    let reason = condition(status, "DisruptionTarget", "True")?.reason.as_deref().unwrap_or_default();
    let known = DISRUPTIONS.iter().find(|(name, ..)| *name == reason);
    Some(known.map_or_else(
        || (EndCause::Disrupted, format!("was disrupted ({})", plain(reason))),
        |(_, cause, how)| (*cause, (*how).to_owned()),
    ))
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
