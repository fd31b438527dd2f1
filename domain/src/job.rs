//! The state machine of a job: its states, its events, and the transition table.

/// Backoff between a job's attempts, and failures that do not count as attempts.
pub mod retry;

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// The state of a job. The names are internal; [`JobState::wire`] returns OpenAI's.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum JobState {
    /// The rows are being tokenized and checked.
    Validating,
    /// The job waits for a node.
    Queued,
    /// A node is reserved; its trainer has not reported yet.
    Provisioning,
    /// A trainer is running.
    Running,
    /// A pause was requested while a trainer holds the job; the trainer stops at its next step, with a checkpoint.
    Pausing,
    /// The job waits, without a node, until it is resumed.
    Paused,
    /// A cancellation was requested while a trainer holds the job; the trainer stops at its next report.
    Cancelling,
    /// The adapter is published.
    Succeeded,
    /// The job cannot be completed; its error states the reason.
    Failed,
    /// The user cancelled the job.
    Cancelled,
}

/// An event in the life of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray)]
pub enum JobEvent {
    /// All rows are valid and fit.
    DataAccepted,
    /// A row is invalid, or no plan is possible.
    DataRefused,
    /// A node is reserved and a run has the lease.
    NodeClaimed,
    /// The trainer's first report arrived.
    RunStarted,
    /// The run's heartbeats stopped, or its process exited.
    RunLost,
    /// The trainer reported a permanent failure, or all attempts are used.
    RunFailed,
    /// The run acknowledged a stop.
    RunStopped,
    /// The adapter version's row is written.
    AdapterPublished,
    /// The user requested a cancellation.
    CancelAsked,
    /// The user requested a pause, or the job's price cap or its project's budget is spent.
    PauseAsked,
    /// A resume was requested; the rows were already checked.
    ResumeAsked,
    /// A resume was requested; the rows have not been checked yet.
    ResumeAskedUnchecked,
}

/// The error for an event that is not allowed in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} does not allow {event:?}")]
pub struct IllegalTransition {
    /// The job's state.
    pub from: JobState,
    /// The event that is not allowed.
    pub event: JobEvent,
}

impl JobState {
    /// Applies the transition table of jobs: an event that it does not list for a state is refused.
    ///
    /// # Errors
    /// [`IllegalTransition`] for a pair that is not in the table; a final state allows no event.
    pub fn apply(self, event: JobEvent) -> Result<Self, IllegalTransition> {
        use {JobEvent as E, JobState as S};
        Ok(match (self, event) {
            (S::Validating, E::DataAccepted) => S::Queued,
            (S::Queued, E::NodeClaimed) => S::Provisioning,
            (S::Provisioning, E::RunStarted) => S::Running,
            (S::Provisioning | S::Running, E::RunLost) => S::Queued, // a new attempt, with its own plan
            (S::Running, E::AdapterPublished) => S::Succeeded,
            (S::Pausing | S::Cancelling, E::AdapterPublished) => S::Succeeded, // the pause or cancel came too late
            (S::Validating, E::DataRefused) => S::Failed,
            (S::Queued | S::Provisioning | S::Running | S::Pausing, E::RunFailed) => S::Failed,
            (S::Validating | S::Queued, E::PauseAsked) => S::Paused,
            (S::Provisioning | S::Running, E::PauseAsked) => S::Pausing,
            (S::Pausing, E::RunStopped | E::RunLost) => S::Paused,
            (S::Paused, E::ResumeAsked) => S::Queued,
            (S::Paused, E::ResumeAskedUnchecked) => S::Validating,
            (S::Pausing, E::ResumeAsked) => S::Running, // a trainer that stops anyway counts as a lost run
            (S::Validating | S::Queued | S::Paused, E::CancelAsked) => S::Cancelled,
            (S::Provisioning | S::Running | S::Pausing, E::CancelAsked) => S::Cancelling,
            (S::Cancelling, E::RunStopped | E::RunLost | E::RunFailed) => S::Cancelled,
            (from, event) => return Err(IllegalTransition { from, event }),
        })
    }

    /// Returns whether no event is allowed in this state.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Returns the internal name: in SQL and in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns OpenAI's name, the `status` field of a response: the only place where the two vocabularies are mapped.
    ///
    /// Source: the `FineTuningJob` object of OpenAI's API reference.
    #[must_use]
    pub const fn wire(self) -> &'static str {
        match self {
            Self::Validating => "validating_files",
            Self::Queued | Self::Provisioning => "queued",
            Self::Running | Self::Pausing | Self::Cancelling => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The reason why a job is pausing or paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum PauseReason {
    /// A user requested it; the job waits until a user resumes it.
    Asked,
    /// The job's cost limit is reached.
    PriceCap,
    /// The project's monthly budget is spent.
    Budget,
    /// Another job needs its machine; once its trainer has stopped, the job is queued again automatically.
    Preempted,
}

impl PauseReason {
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The priority of a job among the jobs of its project.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Priority {
    /// After the project's other jobs.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before the project's other jobs.
    High,
}

impl Priority {
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns the number that the plan of the queue compares: the larger one goes first.
    #[must_use]
    pub const fn rank(self) -> i32 {
        match self {
            Self::Low => -1,
            Self::Normal => 0,
            Self::High => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::names::{assert_names_read_back, assert_serialized_by_name};

    const EVENTS: &[JobEvent] = JobEvent::VARIANTS;

    proptest! {
        /// No sequence of events leaves a final state.
        #[test]
        fn finished_stays_finished(story in vec(0..EVENTS.len(), 0..32)) {
            let mut state = JobState::Validating;
            for i in story {
                let next = state.apply(EVENTS[i]).unwrap_or(state);
                prop_assert!(!state.is_final() || next == state);
                state = next;
            }
        }
    }

    #[test]
    fn a_cancel_is_taken_in_every_state_that_is_not_final() {
        for &state in JobState::VARIANTS {
            let taken = state.apply(JobEvent::CancelAsked).is_ok() || state == JobState::Cancelling;
            assert_eq!(taken, !state.is_final(), "{state}");
        }
    }

    proptest! {
        /// A paused job accepts only a resume and a cancellation, so a stale trainer cannot change its state.
        #[test]
        fn a_paused_job_waits_for_its_user(event in 0..EVENTS.len()) {
            use JobEvent::{CancelAsked, ResumeAsked, ResumeAskedUnchecked};
            let taken = JobState::Paused.apply(EVENTS[event]).is_ok();
            prop_assert_eq!(taken, [CancelAsked, ResumeAsked, ResumeAskedUnchecked].contains(&EVENTS[event]));
        }
    }

    #[test]
    fn a_pause_frees_the_node_before_the_job_counts_as_paused() {
        use JobEvent as E;
        use JobState as S;
        for (held, free) in [(S::Provisioning, S::Queued), (S::Running, S::Validating)] {
            assert_eq!(held.apply(E::PauseAsked), Ok(S::Pausing));
            assert_eq!(free.apply(E::PauseAsked), Ok(S::Paused));
        }
        assert_eq!(S::Pausing.wire(), "running");
        for freed in [E::RunStopped, E::RunLost] {
            assert_eq!(S::Pausing.apply(freed), Ok(S::Paused));
        }
    }

    #[test]
    fn priorities_rank_as_they_compare() {
        let ranks: Vec<i32> = Priority::VARIANTS.iter().map(|priority| priority.rank()).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        assert!(Priority::VARIANTS.is_sorted() && Priority::default().rank() == 0);
    }

    #[test]
    fn names_read_back() {
        assert_names_read_back::<JobState>();
        assert_serialized_by_name::<JobState>();
        assert_names_read_back::<PauseReason>();
        assert_eq!(PauseReason::PriceCap.name(), "price_cap");
        assert_names_read_back::<Priority>();
        assert_serialized_by_name::<Priority>();
    }
}
