//! A job's life: its states, what can happen to it, and the one table that joins them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a job is. Inside, the words are ours; [`JobState::wire`] gives OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// The rows are being turned into tokens and checked.
    Validating,
    /// Waits for a node.
    Queued,
    /// A node is reserved; its trainer has not reported yet.
    Provisioning,
    /// A trainer is at work.
    Running,
    /// A pause was asked for while a trainer holds the job; it stops at its next step, with a checkpoint.
    Pausing,
    /// Waits, without a node, until it is resumed.
    Paused,
    /// A cancel was asked for while a trainer holds the job; it stops at its next report.
    Cancelling,
    /// The adapter is published.
    Succeeded,
    /// It cannot be done; the job's error says why.
    Failed,
    /// The user asked for it.
    Cancelled,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// Every row is good and fits.
    DataAccepted,
    /// A row is bad, or the plan is impossible.
    DataRefused,
    /// A node is reserved and a run has the lease.
    NodeClaimed,
    /// The trainer's first report came.
    RunStarted,
    /// The run's heartbeats stopped, or its process died.
    RunLost,
    /// The trainer said why it cannot go on, or attempts ran out.
    RunFailed,
    /// The run answered a stop.
    RunStopped,
    /// The adapter version's row is in.
    AdapterPublished,
    /// The user asked for an end.
    CancelAsked,
    /// The user asked for a pause, or the job's money is spent.
    PauseAsked,
    /// It may go on; its rows were checked before.
    ResumeAsked,
    /// It may go on; its rows were not checked yet.
    ResumeAskedUnchecked,
}

/// An event that the state does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} does not take {event:?}")]
pub struct IllegalTransition {
    /// Where the job is.
    pub from: JobState,
    /// What was to happen.
    pub event: JobEvent,
}

impl JobState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 10] = [
        Self::Validating,
        Self::Queued,
        Self::Provisioning,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The one table of a job's life. Whatever is not written here cannot happen.
    ///
    /// # Errors
    /// [`IllegalTransition`] for a pair that is not in the table; a final state takes nothing.
    pub fn apply(self, event: JobEvent) -> Result<Self, IllegalTransition> {
        use {JobEvent as E, JobState as S};
        Ok(match (self, event) {
            (S::Validating, E::DataAccepted) => S::Queued,
            (S::Queued, E::NodeClaimed) => S::Provisioning,
            (S::Provisioning, E::RunStarted) => S::Running,
            (S::Provisioning | S::Running, E::RunLost) => S::Queued, // planned afresh
            (S::Running, E::AdapterPublished) => S::Succeeded,
            (S::Pausing | S::Cancelling, E::AdapterPublished) => S::Succeeded, // the pause or cancel came too late
            (S::Validating, E::DataRefused) => S::Failed,
            (S::Queued | S::Provisioning | S::Running | S::Pausing, E::RunFailed) => S::Failed,
            (S::Validating | S::Queued, E::PauseAsked) => S::Paused,
            (S::Provisioning | S::Running, E::PauseAsked) => S::Pausing,
            (S::Pausing, E::RunStopped | E::RunLost) => S::Paused,
            (S::Paused, E::ResumeAsked) => S::Queued,
            (S::Paused, E::ResumeAskedUnchecked) => S::Validating,
            (S::Pausing, E::ResumeAsked) => S::Running, // a trainer that stops all the same is a lost run
            (S::Validating | S::Queued | S::Paused, E::CancelAsked) => S::Cancelled,
            (S::Provisioning | S::Running | S::Pausing, E::CancelAsked) => S::Cancelling,
            (S::Cancelling, E::RunStopped | E::RunLost | E::RunFailed) => S::Cancelled,
            (from, event) => return Err(IllegalTransition { from, event }),
        })
    }

    /// Nothing more can happen.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Our word: in SQL, in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Queued => "queued",
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state with this [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// OpenAI's word for it, as `status` in an answer: the only place where the two vocabularies meet.
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

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The reason why a job is pausing or paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// A user asked for it; the job waits until a user resumes it.
    Asked,
    /// The most that the job may cost is spent.
    PriceCap,
    /// The most that its project may spend in a month is spent.
    Budget,
}

impl PauseReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Asked, Self::PriceCap, Self::Budget];

    /// Returns the word in SQL and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::PriceCap => "price_cap",
            Self::Budget => "budget",
        }
    }

    /// Returns the reason with this [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const EVENTS: [JobEvent; 12] = [
        JobEvent::DataAccepted,
        JobEvent::DataRefused,
        JobEvent::NodeClaimed,
        JobEvent::RunStarted,
        JobEvent::RunLost,
        JobEvent::RunFailed,
        JobEvent::RunStopped,
        JobEvent::AdapterPublished,
        JobEvent::CancelAsked,
        JobEvent::PauseAsked,
        JobEvent::ResumeAsked,
        JobEvent::ResumeAskedUnchecked,
    ];

    proptest! {
        /// No story of events brings a finished job back to life.
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
        for state in JobState::ALL {
            let taken = state.apply(JobEvent::CancelAsked).is_ok() || state == JobState::Cancelling;
            assert_eq!(taken, !state.is_final(), "{state}");
        }
    }

    proptest! {
        /// A paused job takes nothing but a resume and a cancel, so no trainer of old can move it.
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
    fn names_read_back() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_name(state.name()), Some(state));
        }
        for reason in PauseReason::ALL {
            assert_eq!(PauseReason::from_name(reason.name()), Some(reason));
        }
    }
}
