//! Outgoing events: the types of the events that webhooks deliver.
//!
//! Types that OpenAI has use OpenAI's names (`fine_tuning.job.succeeded`, `batch.completed`); the others follow the
//! same pattern. Source of the former: the webhook events of OpenAI's API reference.

use std::fmt;

use strum::VariantArray;

use crate::job::JobState;

/// The `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A job entered this state; the first state means that it was created.
    Job(JobState),
    /// A checkpoint was stored from which a run of the job can resume.
    CheckpointCreated,
    /// An adapter version was created and can be used.
    AdapterVersionCreated,
    /// An alias was moved to another adapter version.
    AliasMoved,
    /// A canary was promoted: its alias names its version.
    CanaryPromoted,
    /// A canary was aborted, by a user or by its rule.
    CanaryAborted,
    /// A serving process was requested for a base.
    DeploymentRequested,
    /// The serving process accepts requests.
    DeploymentReady,
    /// The serving process stopped normally: it was idle, or the platform shut down.
    DeploymentStopped,
    /// The serving process failed.
    DeploymentFailed,
    /// A deployment pays for replicas and had no request for a day.
    DeploymentIdle,
    /// All requests of a batch are answered.
    BatchCompleted,
    /// A batch failed.
    BatchFailed,
    /// A batch was cancelled.
    BatchCancelled,
    /// A batch was not completed within its completion window.
    BatchExpired,
    /// The files of an export can be downloaded.
    ExportSucceeded,
    /// An export failed.
    ExportFailed,
    /// A project's budget is spent; its jobs are paused.
    BudgetExhausted,
    /// A user requested a test delivery to an endpoint.
    WebhookTest,
}

impl EventType {
    /// The names of all types other than a job's states.
    const NAMED: [(Self, &'static str); 18] = [
        (Self::CheckpointCreated, "fine_tuning.checkpoint.created"),
        (Self::AdapterVersionCreated, "adapter_version.created"),
        (Self::AliasMoved, "adapter_alias.moved"),
        (Self::CanaryPromoted, "adapter_canary.promoted"),
        (Self::CanaryAborted, "adapter_canary.aborted"),
        (Self::DeploymentRequested, "deployment.requested"),
        (Self::DeploymentReady, "deployment.ready"),
        (Self::DeploymentStopped, "deployment.stopped"),
        (Self::DeploymentFailed, "deployment.failed"),
        (Self::DeploymentIdle, "deployment.idle"),
        (Self::BatchCompleted, "batch.completed"),
        (Self::BatchFailed, "batch.failed"),
        (Self::BatchCancelled, "batch.cancelled"),
        (Self::BatchExpired, "batch.expired"),
        (Self::ExportSucceeded, "export.succeeded"),
        (Self::ExportFailed, "export.failed"),
        (Self::BudgetExhausted, "budget.exhausted"),
        (Self::WebhookTest, "webhook_endpoint.test"),
    ];

    /// Returns all types, in the order of the documentation.
    pub fn all() -> impl Iterator<Item = Self> {
        JobState::VARIANTS.iter().copied().map(Self::Job).chain(Self::NAMED.into_iter().map(|(event, _)| event))
    }

    /// Returns the type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|event| event.to_string() == name)
    }
}

impl fmt::Display for EventType {
    /// Writes the name in SQL and in the API.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(JobState::Validating) => f.write_str("fine_tuning.job.created"),
            Self::Job(state) => write!(f, "fine_tuning.job.{state}"),
            other => {
                let named = Self::NAMED.iter().find(|(event, _)| event == other);
                f.write_str(named.map_or("unknown", |(_, name)| name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_type_has_a_name_of_its_own_that_reads_back() {
        let mut names = BTreeSet::new();
        for event in EventType::all() {
            assert_eq!(EventType::from_name(&event.to_string()), Some(event));
            assert!(names.insert(event.to_string()), "{event}");
        }
        for openai in ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"] {
            assert!(names.contains(openai), "{names:?}");
        }
        assert_eq!(EventType::from_name("unknown"), None);
    }
}
