//! Why a job runs where it runs, why it waits, and why it failed.

use attune_store::{
    jobs::{job::Job, waiting::Neighbors},
    runs::placement::{LastRun, NotTaken, Placed, Predicted},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    estimate::{MemoryView, PlanView},
    job_view::JobErrorView,
    project_queue::QuotasView,
};

/// The placement of a job: the machine of its last run, and its place in the queue.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobPlacementView {
    /// The object type, always `fine_tuning.job.placement`.
    pub object: &'static str,
    /// The job's ID.
    pub job_id: String,
    /// The job's status.
    pub status: &'static str,
    /// The last run; `null` if the job has had none.
    pub run: Option<PlacedRunView>,
    /// The place in the queue; `null` unless the job waits.
    pub waiting: Option<WaitingView>,
    /// The error, if the job failed.
    pub error: Option<JobErrorView>,
}

/// The last run of a job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PlacedRunView {
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The time of the start, in Unix seconds.
    pub started_at: i64,
    /// The time of the end, in Unix seconds; `null` if the run has not ended.
    pub ended_at: Option<i64>,
    /// The execution plan.
    pub plan: PlanView,
    /// The offer that was taken; `null` if it was not recorded.
    pub offer: Option<TakenOfferView>,
    /// The estimated peak memory; `null` if it was not recorded.
    pub memory: Option<MemoryView>,
    /// The measured peak memory so far; `null` before the first step.
    pub measured_peak_bytes: Option<u64>,
    /// The reason why each other offer was not taken; at most 100 offers.
    pub other_offers: Vec<OtherOfferView>,
}

/// The offer of a run.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TakenOfferView {
    /// The provider, such as `local`.
    pub provider: String,
    /// The provider's name for the machine.
    pub name: String,
    /// The price per hour in USD; 0 for one's own machine.
    pub usd_per_hour: f64,
    /// The prediction for the rest of the job when the run was created; `null` if it was not recorded.
    pub predicted: Option<PredictedView>,
}

/// The predicted duration and cost of the rest of a job on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct PredictedView {
    /// The time from the start to the end, in seconds.
    pub duration_seconds: f64,
    /// The price of the machine for that time in USD, without that of trained tokens.
    pub machine_usd: f64,
}

/// An offer that was not taken.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OtherOfferView {
    /// The provider, such as `local`.
    pub provider: String,
    /// The provider's name for the machine.
    pub name: String,
    /// The human-readable reason.
    pub reason: String,
    /// The prediction for the rest of the job there when the run was created; `null` if it is unknown, as for a machine
    /// that the job cannot use.
    pub predicted: Option<PredictedView>,
}

/// The place of a job in the queue.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct WaitingView {
    /// The human-readable reason; `null` until the job is planned.
    pub reason: Option<String>,
    /// The position among all waiting jobs, from 1; `null` until the job is planned.
    pub position: Option<i32>,
    /// The estimated time of the start, in Unix seconds; `null` if it cannot be estimated.
    pub estimated_start: Option<i64>,
    /// The number of jobs ahead, of all projects; `null` until the job is planned.
    pub jobs_ahead: Option<i32>,
    /// The number of the project's own jobs ahead.
    pub own_jobs_ahead: i64,
    /// The number of the project's jobs that hold a machine.
    pub own_jobs_running: i64,
    /// The maximum number of the project's running jobs; `null` for no maximum.
    pub max_running_jobs: Option<u32>,
    /// The priority among the jobs of the project: `low`, `normal` or `high`.
    pub priority: &'static str,
    /// The project's quotas, and their use.
    pub quotas: QuotasView,
}

impl JobPlacementView {
    /// Creates the view of a job and its last run. `waiting`: its place in the queue, if it waits.
    pub fn new(job: Job, run: Option<LastRun>, waiting: Option<WaitingView>) -> Self {
        Self {
            object: "fine_tuning.job.placement",
            job_id: job.job_id.to_string(),
            status: job.state.wire(),
            run: run.map(PlacedRunView::from),
            waiting,
            error: job.error.map(JobErrorView::from),
        }
    }
}

impl From<LastRun> for PlacedRunView {
    fn from(run: LastRun) -> Self {
        let memory = run.placed.as_ref().map(|placed| MemoryView::new(&placed.estimate, placed.margin));
        let (offer, others) = match run.placed {
            None => (None, Vec::new()),
            Some(Placed { provider, offer, micro_usd_per_hour, predicted, others, .. }) => {
                let (usd_per_hour, predicted) = (micro_usd_per_hour as f64 / 1e6, predicted.map(PredictedView::from));
                (Some(TakenOfferView { provider, name: offer, usd_per_hour, predicted }), others)
            }
        };
        let other = |NotTaken { provider, offer, reason, predicted }| OtherOfferView {
            provider,
            name: offer,
            reason,
            predicted: predicted.map(PredictedView::from),
        };
        Self {
            attempt: run.attempt,
            started_at: run.started_at.timestamp(),
            ended_at: run.ended_at.map(|at| at.timestamp()),
            plan: PlanView::from(&run.plan),
            offer,
            memory,
            measured_peak_bytes: run.measured_peak.map(|peak| peak.0),
            other_offers: others.into_iter().map(other).collect(),
        }
    }
}

impl From<Predicted> for PredictedView {
    fn from(predicted: Predicted) -> Self {
        Self { duration_seconds: predicted.seconds, machine_usd: predicted.micro_usd as f64 / 1e6 }
    }
}

impl WaitingView {
    /// Creates the view of a waiting job's place.
    pub fn new(job: &Job, neighbors: Neighbors, quotas: QuotasView) -> Self {
        Self {
            reason: job.waiting_reason.clone(),
            position: job.queue_position,
            estimated_start: job.estimated_start.map(|at| at.timestamp()),
            jobs_ahead: job.queue_position.map(|position| position - 1),
            own_jobs_ahead: neighbors.ahead,
            own_jobs_running: neighbors.running,
            max_running_jobs: quotas.max_running_jobs,
            priority: job.priority.name(),
            quotas,
        }
    }
}
