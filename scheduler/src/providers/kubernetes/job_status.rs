//! The state of a Job and its pods as that of a process.

use attune_domain::run::process::{EndCause, WaitKind};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::Pod,
};

use super::{names::RELEASED, pod_status};
use crate::providers::provider::{Ended, Wait};

/// The state of a Job as that of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    /// Waiting for this reason.
    Pending(Wait),
    /// Running, or being ended.
    Running,
    /// Ended.
    Ended(Ended),
}

/// The facts that a Job's object does not show.
pub(super) struct Facts<'a> {
    /// The pods of the Job.
    pub(super) pods: &'a [&'a Pod],
    /// `true` if a container of it was seen running.
    pub(super) has_started: bool,
    /// The kind of the reason for which its pod was last seen waiting.
    pub(super) waited_for: Option<WaitKind>,
    /// The time limit.
    pub(super) minutes: u32,
    /// The Kueue queue.
    pub(super) queue: Option<&'a str>,
}

fn condition<'a>(job: &'a Job, kinds: &[&str]) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.status == "True" && kinds.contains(&condition.type_.as_str()))
}

/// Returns whether the Job has a final condition.
pub(super) fn is_finished(job: &Job) -> bool {
    condition(job, &["Complete", "Failed"]).is_some()
}

/// Returns whether the Secret of the Job exists. Until then the Job is suspended, and has no pod.
pub(super) fn is_released(job: &Job) -> bool {
    job.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(RELEASED))
}

/// Returns the status.
pub(super) fn status(job: &Job, facts: &Facts<'_>) -> Status {
    if !is_released(job) {
        let message = "the scheduler stopped while it was starting the Kubernetes Job";
        return Status::Ended(Ended::new(EndCause::NotStarted, message));
    }
    let failure = condition(job, &["Failed", "FailureTarget"]);
    if failure.is_some_and(|failure| failure.reason.as_deref() == Some("DeadlineExceeded")) {
        return if is_finished(job) { Status::Ended(late(facts)) } else { Status::Running };
    }
    let pod = facts.pods.iter().max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0));
    if let Some(ended) = pod.and_then(|pod| pod_status::end(pod)) {
        return Status::Ended(ended);
    }
    if is_finished(job) {
        return match (failure, pod) {
            (None, _) => Status::Ended(Ended::program("the Kubernetes Job ended (exit status: 0)")),
            // The watch of the pods is behind: the pod's end has the cause.
            (Some(_), Some(_)) => Status::Running,
            (Some(failure), None) => Status::Ended(without_pod(failure)),
        };
    }
    if job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true) {
        return suspended(facts);
    }
    match pod {
        Some(pod) => pod_status::pending(pod).map_or(Status::Running, Status::Pending),
        // Its pod has ended, and was deleted: the Job's condition follows.
        None if facts.has_started || has_ended_pods(job) => Status::Running,
        None => Status::Pending(Wait::new(WaitKind::Starting, "Waiting for Kubernetes to create the pod")),
    }
}

/// Returns the end of a Job that reached its deadline. The deadline includes the wait for a node.
fn late(facts: &Facts<'_>) -> Ended {
    let minutes = facts.minutes;
    let waited = format!("the Kubernetes Job waited for its whole time limit of {minutes} minutes");
    match (facts.has_started, facts.waited_for) {
        (true, _) => {
            Ended::new(EndCause::Deadline, format!("the Kubernetes Job reached its time limit of {minutes} minutes"))
        }
        (false, Some(WaitKind::ImagePull)) => {
            Ended::new(EndCause::ImagePull, format!("{waited}: its image could not be pulled"))
        }
        (false, _) => Ended::new(EndCause::NotStarted, waited),
    }
}

fn without_pod(failure: &JobCondition) -> Ended {
    match failure.reason.as_deref() {
        // The only rule of the policy is about disruptions.
        Some("PodFailurePolicy") => {
            Ended::new(EndCause::Disrupted, "the Kubernetes pod was disrupted: evicted, preempted, or its node failed")
        }
        _ => Ended::new(EndCause::Stopped, "the Kubernetes pod was deleted"),
    }
}

/// Returns the status of a suspended Job. One that has run would start its program again with the same token: its run
/// ends, and the platform starts another one from the last checkpoint.
fn suspended(facts: &Facts<'_>) -> Status {
    let ended = |cause, message: &str| Status::Ended(Ended::new(cause, message));
    let waits = |kind, message: String| Status::Pending(Wait::new(kind, message));
    match (facts.has_started, facts.queue) {
        (true, Some(_)) => ended(EndCause::Preempted, "the Kubernetes Job was preempted by Kueue"),
        (true, None) => ended(EndCause::Stopped, "the Kubernetes Job was suspended by an operator"),
        (false, Some(queue)) => waits(WaitKind::Quota, format!("Waiting in the Kueue queue {queue}")),
        (false, None) => waits(WaitKind::Held, "An operator of the cluster has suspended the Kubernetes Job".into()),
    }
}

fn has_ended_pods(job: &Job) -> bool {
    let Some(status) = &job.status else { return false };
    let uncounted = status.uncounted_terminated_pods.as_ref();
    let is_uncounted = |uids: Option<&Vec<String>>| uids.is_some_and(|uids| !uids.is_empty());
    status.failed.unwrap_or(0) + status.succeeded.unwrap_or(0) > 0
        || is_uncounted(uncounted.and_then(|pods| pods.failed.as_ref()))
        || is_uncounted(uncounted.and_then(|pods| pods.succeeded.as_ref()))
}
