//! The state of each Job and pod as that of a process, without a server.

use attune_domain::run::process::{EndCause, WaitKind};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::{Value, json};

use crate::providers::{
    kubernetes::job_status::{Facts, Status, status},
    provider::Wait,
};

fn job(conditions: &Value) -> Value {
    json!({"metadata": {"name": "run-1", "annotations": {"attune.dev/released": "true"}}, "spec": {"suspend": false},
        "status": {"conditions": conditions}})
}

fn failed(reason: &str) -> Value {
    job(&json!([{"type": "Failed", "status": "True", "reason": reason}]))
}

fn pod(status: &Value) -> Value {
    json!({"metadata": {"name": "run-1-x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status})
}

fn seen(job: Value, pod: Option<Value>, has_started: bool, queue: Option<&str>) -> Status {
    let (job, pod): (Job, Option<Pod>) =
        (serde_json::from_value(job).unwrap(), pod.map(|pod| serde_json::from_value(pod).unwrap()));
    let pods: Vec<&Pod> = pod.iter().collect();
    status(&job, &Facts { pods: &pods, has_started, waited_for: None, minutes: 60, queue })
}

fn pending(kind: WaitKind, message: &str) -> Status {
    Status::Pending(Wait::new(kind, message))
}

/// Returns the reason of a pod that waits.
fn waits(pod_status: &Value) -> Status {
    seen(job(&json!([])), Some(pod(pod_status)), false, None)
}

/// Returns the cause and the message of an end.
fn end(status: Status) -> (EndCause, String) {
    match status {
        Status::Ended(ended) => (ended.cause, ended.message),
        other => panic!("{other:?}"),
    }
}

/// Returns the end of a failed Job with this pod.
fn pod_end(pod: Value) -> (EndCause, String) {
    end(seen(failed("BackoffLimitExceeded"), Some(pod), true, None))
}

fn terminated(exit_code: i32, reason: &str) -> Value {
    json!({"phase": "Failed", "containerStatuses": [{"name": "trainer", "state":
        {"terminated": {"exitCode": exit_code, "reason": reason}}}]})
}

#[test]
fn a_pod_that_waits_has_the_reason_of_its_cluster() {
    let container = |reason: &str| {
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses":
            [{"name": "trainer", "state": {"waiting": {"reason": reason, "message": "back-off\n\u{1b}[1m5m"}}}]})
    };
    let unscheduled = |reason: &str| {
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": reason,
            "message": "0/3 nodes are available"}]})
    };
    use WaitKind::{ContainerCreating, ContainerError, Held, ImagePull, Starting, Unschedulable};
    for (status, kind, said) in [
        (unscheduled("Unschedulable"), Unschedulable, "Waiting for a node of Kubernetes: 0/3 nodes are available"),
        (unscheduled("SchedulingGated"), Held, "Waiting until the scheduling gates of the pod are removed"),
        (
            container("ImagePullBackOff"),
            ImagePull,
            "Kubernetes cannot pull the image (ImagePullBackOff): back-off [1m5m",
        ),
        (container("ErrImagePull"), ImagePull, "Kubernetes cannot pull the image (ErrImagePull): back-off [1m5m"),
        (
            container("CreateContainerConfigError"),
            ContainerError,
            "Kubernetes cannot create the container (CreateContainerConfigError): back-off [1m5m",
        ),
        (
            container("ContainerCreating"),
            ContainerCreating,
            "Waiting for the node of Kubernetes to start the container",
        ),
        (json!({"phase": "Pending"}), Starting, "Waiting for Kubernetes to choose a node"),
    ] {
        assert_eq!(waits(&status), pending(kind, said));
    }
}

#[test]
fn a_job_without_a_pod_waits_or_runs() {
    let active = || job(&json!([]));
    let created = pending(WaitKind::Starting, "Waiting for Kubernetes to create the pod");
    assert_eq!(seen(active(), None, false, None), created);
    assert_eq!(seen(active(), None, true, None), Status::Running, "its pod was deleted, and its condition follows");
    let mut counted = active();
    counted["status"]["uncountedTerminatedPods"] = json!({"failed": ["uid"]});
    assert_eq!(seen(counted, None, false, None), Status::Running);
    assert_eq!(seen(active(), Some(pod(&json!({"phase": "Running"}))), true, None), Status::Running);
    assert_eq!(seen(active(), Some(pod(&json!({"phase": "Unknown"}))), true, None), Status::Running);
}

#[test]
fn an_end_has_its_cause() {
    use EndCause::{Disrupted, Evicted, NodeFailed, NotStarted, OutOfMemory, Preempted, Program, Stopped};
    let disrupted = |reason: &str| {
        let mut pod = pod(&terminated(137, "Error"));
        pod["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        pod
    };
    let mut evicted =
        pod(&json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}));
    evicted["status"]["containerStatuses"] = json!([]);
    let mut used_more = evicted.clone();
    used_more["status"]["message"] = json!(
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: \
        90Mi. Container trainer was using 5Gi, request is 4Gi, has larger consumption of memory. "
    );
    let rejected =
        pod(&json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource"}));
    let mut deleted = pod(&terminated(143, "Error"));
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (pod, cause, said) in [
        (pod(&terminated(137, "OOMKilled")), OutOfMemory, "it used more memory than its limit"),
        (pod(&terminated(137, "Error")), Program, "killed (signal: 9), possibly because its node ran out of memory"),
        (pod(&terminated(139, "Error")), Program, "(signal: 11)"),
        (pod(&terminated(3, "Error")), Program, "(exit status: 3)"),
        (pod(&terminated(127, "ContainerCannotRun")), NotStarted, "could not start its program (ContainerCannotRun)"),
        (pod(&terminated(128, "StartError")), NotStarted, "could not start its program (StartError)"),
        (pod(&terminated(137, "ContainerStatusUnknown")), NotStarted, "(ContainerStatusUnknown)"),
        (disrupted("PreemptionByScheduler"), Preempted, "preempted by another pod"),
        (disrupted("DeletionByTaintManager"), NodeFailed, "its node failed"),
        (disrupted("EvictionByEvictionAPI"), Evicted, "its node is drained"),
        (disrupted("DeletionByPodGC"), NodeFailed, "its node was deleted"),
        (disrupted("TerminationByKubelet"), Evicted, "shuts down or ran short of resources"),
        (disrupted("NewReason"), Disrupted, "was disrupted (NewReason)"),
        (used_more, OutOfMemory, "was evicted: The node was low on resource: memory."),
        (evicted, Evicted, "was evicted: The node was low on resource: memory."),
        (rejected, NotStarted, "(OutOfcpu): Node didn't have enough resource"),
        (deleted, Stopped, "the Kubernetes pod was deleted"),
    ] {
        let (found, message) = pod_end(pod);
        assert!(found == cause && message.contains(said), "{found:?} {message}, and not {said}");
    }
    let mut drained = disrupted("EvictionByEvictionAPI");
    drained["status"]["phase"] = json!("Succeeded");
    assert_eq!(pod_end(drained).0, Evicted, "it ended on SIGTERM");
    let mut ran_out = disrupted("TerminationByKubelet");
    ran_out["status"]["containerStatuses"] = terminated(137, "OOMKilled")["containerStatuses"].clone();
    assert_eq!(pod_end(ran_out).0, OutOfMemory, "the evidence of memory is decisive");
}

#[test]
fn a_failed_job_without_its_pod_was_disrupted_or_waited_too_long() {
    use EndCause::{Deadline, Disrupted, ImagePull, NotStarted, Program, Stopped};
    let policy = end(seen(failed("PodFailurePolicy"), None, true, None));
    assert!(policy.0 == Disrupted && policy.1.contains("disrupted"), "{policy:?}");
    let deleted = end(seen(failed("BackoffLimitExceeded"), None, true, None));
    assert_eq!(deleted, (Stopped, "the Kubernetes pod was deleted".into()));
    let late = end(seen(failed("DeadlineExceeded"), None, true, None));
    assert_eq!(late, (Deadline, "the Kubernetes Job reached its time limit of 60 minutes".into()));
    let waited = end(seen(failed("DeadlineExceeded"), None, false, None));
    assert!(waited.0 == NotStarted && waited.1.contains("waited for its whole time limit"), "{waited:?}");
    let late: Job = serde_json::from_value(failed("DeadlineExceeded")).unwrap();
    let waited_for = Some(WaitKind::ImagePull);
    let facts = Facts { pods: &[], has_started: false, waited_for, minutes: 60, queue: None };
    let without_image = end(status(&late, &facts));
    assert!(without_image.0 == ImagePull && without_image.1.ends_with("could not be pulled"), "{without_image:?}");
    let ending = job(&json!([{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]));
    assert_eq!(
        seen(ending, Some(pod(&terminated(143, "Error"))), true, None),
        Status::Running,
        "its pod is being ended"
    );
    let behind = seen(failed("BackoffLimitExceeded"), Some(pod(&json!({"phase": "Running"}))), true, None);
    assert_eq!(behind, Status::Running, "the watch of the pods is behind");
    let complete = job(&json!([{"type": "Complete", "status": "True"}]));
    assert_eq!(end(seen(complete, None, true, None)).0, Program);
}

#[test]
fn a_suspended_job_waits_unless_it_has_run() {
    let suspended = || {
        let mut job = job(&json!([]));
        job["spec"]["suspend"] = json!(true);
        job
    };
    let queued = seen(suspended(), None, false, Some("gpus"));
    assert_eq!(queued, pending(WaitKind::Quota, "Waiting in the Kueue queue gpus"));
    let held = pending(WaitKind::Held, "An operator of the cluster has suspended the Kubernetes Job");
    assert_eq!(seen(suspended(), None, false, None), held);
    let preempted = end(seen(suspended(), None, true, Some("gpus")));
    assert_eq!(preempted, (EndCause::Preempted, "the Kubernetes Job was preempted by Kueue".into()));
    assert!(end(seen(suspended(), None, true, None)).1.contains("suspended by an operator"));
    let mut unreleased = suspended();
    unreleased["metadata"]["annotations"] = json!({});
    assert_eq!(end(seen(unreleased, None, false, Some("gpus"))).0, EndCause::NotStarted);
}
