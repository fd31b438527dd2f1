//! The input of the planner.

use std::sync::Arc;

use crate::{
    bytes::Bytes,
    id::{JobId, ProjectId},
    offer::{self, Offer, Ranking, Refusal},
};

/// The state of the queue at one moment. Times are seconds on one clock, such as Unix seconds.
#[derive(Debug, Clone)]
pub struct Queue {
    /// The present time.
    pub now: f64,
    /// The waiting jobs, in any order.
    pub waiting: Vec<WaitingJob>,
    /// The running jobs.
    pub running: Vec<RunningJob>,
    /// The offers of all providers, with what is reserved on them now.
    pub offers: Vec<Offer>,
    /// The projects of the waiting and running jobs. One that is missing has the weight 1, no use and no limit.
    pub projects: Vec<ProjectShare>,
}

/// A waiting job.
#[derive(Debug, Clone)]
pub struct WaitingJob {
    /// The job's ID.
    pub job: JobId,
    /// The job's project.
    pub project: ProjectId,
    /// The priority; the larger one goes first within a project.
    pub priority: i32,
    /// The time at which the job entered the queue; for a job that was stopped for another one, the first time.
    pub since: f64,
    /// The memory that the job needs at least, with the default margin.
    pub need: Bytes,
    /// The expected duration of the run, in seconds; for a job that resumes, of the rest.
    pub seconds: f64,
    /// `true` if a run of this job was stopped for another job. Such a job stops no other one, so no two jobs can stop
    /// each other, directly or through others.
    pub was_preempted: bool,
    /// The offers that the job may use; `None`: all of this build's devices, in the order of their preference.
    pub offers: Option<Arc<Ranking>>,
}

impl WaitingJob {
    /// Returns the expected duration on an offer of the queue, in seconds.
    #[must_use]
    pub fn seconds_on(&self, offer: usize) -> f64 {
        let factor = self.offers.as_ref().and_then(|ranking| ranking.factors.get(offer));
        self.seconds * factor.copied().unwrap_or(1.0)
    }

    /// Returns the reason why the job has no room on an offer of the queue now; `None`: it has.
    #[must_use]
    pub fn refusal(&self, index: usize, offer: &Offer) -> Option<Refusal> {
        let never = self.offers.as_ref().and_then(|ranking| ranking.refused.get(index)?.clone());
        never.or_else(|| offer::refusal(self.need, true, offer))
    }
}

/// A running job.
#[derive(Debug, Clone)]
pub struct RunningJob {
    /// The job's ID.
    pub job: JobId,
    /// The job's project.
    pub project: ProjectId,
    /// The priority.
    pub priority: i32,
    /// `true` if the job may be stopped at a checkpoint for another one; `false` as well while it is being stopped.
    pub is_preemptible: bool,
    /// The provider's name and the offer's name.
    pub offer: (String, String),
    /// The memory that the run has reserved.
    pub memory: Bytes,
    /// The expected time of the end. While the run is being stopped: that of the stop.
    pub ends_at: f64,
    /// The node-seconds that a stop would lose now: since the last checkpoint, and for the next start.
    pub lost_seconds: f64,
}

/// The share of a project.
#[derive(Debug, Clone)]
pub struct ProjectShare {
    /// The project's ID.
    pub project: ProjectId,
    /// The weight of the project; twice the weight is twice the share.
    pub weight: f64,
    /// The node-seconds that the project has used until now, of ended runs and of those that still run, decayed by
    /// their age: the sum of [`super::decayed_use`].
    pub used: f64,
    /// The maximum number of running jobs; `None`: no limit.
    pub max_running: Option<u32>,
    /// The node time of this month, and its maximum; `None`: no limit.
    pub node_time: Option<NodeTime>,
}

/// The node time of a project in the present month, and its maximum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeTime {
    /// The node-seconds that the project's runs have used in this month until now.
    pub used: f64,
    /// The maximum of a month, in node-seconds.
    pub max: f64,
    /// The time at which the next month begins.
    pub resets_at: f64,
}
