//! What users can be told of outside: the types of the events that webhooks carry.
//!
//! Names that OpenAI has are OpenAI's (`fine_tuning.job.succeeded`, `batch.completed`); the others follow their manner.
//! Source of the former: the webhook events of OpenAI's API reference.

use std::fmt;

use crate::job::JobState;

/// What happened, as the `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A job came into this state; into its first one: it was created.
    Job(JobState),
    /// A state was kept from which a job's run can go on.
    CheckpointCreated,
    /// An adapter version is there to be used.
    AdapterVersionCreated,
    /// An alias stands for another adapter version now.
    AliasMoved,
    /// A serving process is wanted for a base.
    DeploymentRequested,
    /// It answers.
    DeploymentReady,
    /// It has ended in good order: it was not used, or the platform was stopped.
    DeploymentStopped,
    /// It has ended badly.
    DeploymentFailed,
    /// All requests of a batch are answered.
    BatchCompleted,
    /// A batch could not be done.
    BatchFailed,
    /// A batch was cancelled.
    BatchCancelled,
    /// A batch was not done in its time.
    BatchExpired,
    /// A project has spent its budget; its jobs are paused.
    BudgetExhausted,
    /// Somebody wants to see whether an endpoint works.
    WebhookTest,
}

impl EventType {
    /// Those that are not steps of a job, with their names.
    const NAMED: [(Self, &'static str); 13] = [
        (Self::CheckpointCreated, "fine_tuning.checkpoint.created"),
        (Self::AdapterVersionCreated, "adapter_version.created"),
        (Self::AliasMoved, "adapter_alias.moved"),
        (Self::DeploymentRequested, "deployment.requested"),
        (Self::DeploymentReady, "deployment.ready"),
        (Self::DeploymentStopped, "deployment.stopped"),
        (Self::DeploymentFailed, "deployment.failed"),
        (Self::BatchCompleted, "batch.completed"),
        (Self::BatchFailed, "batch.failed"),
        (Self::BatchCancelled, "batch.cancelled"),
        (Self::BatchExpired, "batch.expired"),
        (Self::BudgetExhausted, "budget.exhausted"),
        (Self::WebhookTest, "webhook_endpoint.test"),
    ];

    /// Every type, in the order in which the documents have them.
    pub fn all() -> impl Iterator<Item = Self> {
        JobState::ALL.into_iter().map(Self::Job).chain(Self::NAMED.into_iter().map(|(event, _)| event))
    }

    /// The type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|event| event.to_string() == name)
    }
}

impl fmt::Display for EventType {
    /// Its name: in SQL, on the wire.
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
