//! The Job of a launch. It is created suspended: its Secret, which it owns, is created next, and then it is released.
//! So a crash leaves at most a Job without a pod, which the reconciler removes, and its Secret with it.

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use super::{names::RELEASED, pod, template::Template};
use crate::{config::kubernetes::KubernetesOffer, providers::provider::Launch};

/// The label by which Kueue finds the queue of a Job.
const QUEUE: &str = "kueue.x-k8s.io/queue-name";

/// The annotations that keep autoscalers from moving a pod to another node to save money: Karpenter's, and that of the
/// cluster autoscaler.
const UNDISTURBED: [(&str, &str); 2] =
    [("karpenter.sh/do-not-disrupt", "true"), ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false")];

/// Returns the Job. It never starts a second pod: the platform starts another run, with another token.
pub(super) fn job(template: &Template<'_>, launch: &Launch, offer: &KubernetesOffer) -> Job {
    let metadata = template.metadata(launch);
    let pod_metadata = ObjectMeta {
        annotations: Some(UNDISTURBED.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        labels: metadata.labels.clone(),
        ..ObjectMeta::default()
    };
    let spec = JobSpec {
        active_deadline_seconds: Some(i64::from(template.config.time_limit_minutes) * 60),
        backoff_limit: Some(0),
        completions: Some(1),
        parallelism: Some(1),
        pod_failure_policy: Some(disruptions()),
        pod_replacement_policy: Some("Failed".into()),
        suspend: Some(true),
        template: PodTemplateSpec { metadata: Some(pod_metadata), spec: Some(pod::spec(template, launch, offer)) },
        ..JobSpec::default()
    };
    Job { metadata, spec: Some(spec), status: None }
}

/// Returns the policy whose reason on the Job distinguishes a disruption from a failure after the pod is deleted.
fn disruptions() -> PodFailurePolicy {
    let condition =
        PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".into(), status: Some("True".into()) };
    let rule = PodFailurePolicyRule {
        action: "FailJob".into(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![condition]),
    };
    PodFailurePolicy { rules: vec![rule] }
}

/// Returns the patch that releases a Job whose Secret exists. Kueue ends the suspension of a Job that it admits.
pub(super) fn release(queue: Option<&str>) -> Value {
    let annotations = json!({ RELEASED: "true" });
    match queue {
        Some(queue) => json!({"metadata": {"annotations": annotations, "labels": {QUEUE: queue}}}),
        None => json!({"metadata": {"annotations": annotations}, "spec": {"suspend": false}}),
    }
}
