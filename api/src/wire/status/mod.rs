//! The state of the queue, the runs, the machines and the replicas, for an organization's administrators.

use attune_store::{
    runs::provider::ProviderState,
    status::{Excerpt, MOST_LISTED, OwnProject, QueuedJob, RunStatus, Status},
};
use serde::Serialize;
use utoipa::ToSchema;

use machines::{Machines, ReplicaStatusView};

/// Machines and replicas.
pub mod machines;

/// The state of the queue, the runs, the machines and the replicas at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OrganizationStatusView {
    /// The object type, always `organization.status`.
    pub object: &'static str,
    /// The time, in Unix seconds.
    pub read_at: i64,
    /// The queued jobs, in the order of their positions.
    pub queue: StatusList<QueuedJobView>,
    /// The runs that have not ended, oldest first.
    pub runs: StatusList<RunStatusView>,
    /// The first 100 configured providers, by name.
    pub providers: Vec<ProviderStatusView>,
    /// The machines that the providers offer, with their use by all organizations.
    pub machines: Machines,
    /// The serving processes over base models of the installation or of the organization's projects, oldest first.
    pub replicas: StatusList<ReplicaStatusView>,
}

/// A provider of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProviderStatusView {
    /// The provider's name, such as `local`.
    pub name: String,
    /// The human-readable reason why the provider did not answer when it was queried last; `null` if it did.
    pub unreachable: Option<String>,
}

/// The first objects of the organization, and the number of all.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct StatusList<T> {
    /// The first 100 objects of the organization.
    pub data: Vec<T>,
    /// The number of objects of the organization.
    pub total: i64,
    /// The number of objects of the other organizations.
    pub other_organizations: i64,
}

/// A project of the organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StatusProjectView {
    /// The project's ID.
    pub id: String,
    /// The project's name.
    pub name: String,
}

/// A queued job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct QueuedJobView {
    /// The job's ID.
    pub job_id: String,
    /// The job's project.
    pub project: StatusProjectView,
    /// The priority among the jobs of the project: `low`, `normal` or `high`.
    pub priority: &'static str,
    /// The position among all waiting jobs, from 1; `null` until the job is planned.
    pub position: Option<i32>,
    /// The human-readable reason why the job waits; `null` until the job is planned.
    pub reason: Option<String>,
    /// The estimated time of the start, in Unix seconds; `null` if it cannot be estimated.
    pub estimated_start: Option<i64>,
    /// The time at which the job entered the queue for the first time, in Unix seconds.
    pub queued_at: i64,
}

/// A run that has not ended.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RunStatusView {
    /// The job's ID.
    pub job_id: String,
    /// The job's project.
    pub project: StatusProjectView,
    /// The state: `provisioning` until the trainer has reported, `running`, and `pausing` or `cancelling` until the
    /// trainer has stopped.
    pub state: &'static str,
    /// The human-readable reason why the provider has not started the trainer; `null` if there is none.
    pub reason: Option<String>,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The provider, such as `local`.
    pub provider: String,
    /// The provider's name for the machine.
    pub machine: String,
    /// The number of completed optimizer steps of the job.
    pub steps_done: i64,
    /// The number of optimizer steps of the whole job; `null` until it is known.
    pub total_steps: Option<i64>,
    /// The number of tokens per second, counting all tokens of a step; `null` before the first step.
    pub tokens_per_second: Option<f64>,
    /// The predicted peak memory.
    pub predicted_peak_bytes: u64,
    /// The measured peak memory so far; `null` before the first step.
    pub measured_peak_bytes: Option<u64>,
    /// The time of the start, in Unix seconds.
    pub started_at: i64,
}

impl From<Status> for OrganizationStatusView {
    fn from(status: Status) -> Self {
        Self {
            object: "organization.status",
            read_at: status.read_at.timestamp(),
            queue: StatusList::new(status.queue),
            runs: StatusList::new(status.runs),
            providers: status.providers.into_iter().map(ProviderStatusView::from).collect(),
            machines: Machines::new(status.machines, usize::try_from(MOST_LISTED).unwrap_or(usize::MAX)),
            replicas: StatusList::new(status.replicas),
        }
    }
}

impl From<ProviderState> for ProviderStatusView {
    fn from(ProviderState { name, unreachable }: ProviderState) -> Self {
        Self { name, unreachable }
    }
}

impl<T> StatusList<T> {
    fn new<R: Into<T>>(excerpt: Excerpt<R>) -> Self {
        let Excerpt { first, total, of_others } = excerpt;
        Self { data: first.into_iter().map(Into::into).collect(), total, other_organizations: of_others }
    }
}

impl From<OwnProject> for StatusProjectView {
    fn from(project: OwnProject) -> Self {
        Self { id: project.project_id.to_string(), name: project.name }
    }
}

impl From<QueuedJob> for QueuedJobView {
    fn from(job: QueuedJob) -> Self {
        Self {
            job_id: job.job_id.to_string(),
            project: job.project.into(),
            priority: job.priority.name(),
            position: job.position,
            reason: job.reason,
            estimated_start: job.estimated_start.map(|at| at.timestamp()),
            queued_at: job.queued_at.timestamp(),
        }
    }
}

impl From<RunStatus> for RunStatusView {
    fn from(run: RunStatus) -> Self {
        Self {
            job_id: run.job_id.to_string(),
            project: run.project.into(),
            state: run.state.name(),
            reason: run.reason,
            attempt: run.attempt,
            provider: run.provider,
            machine: run.offer,
            steps_done: run.steps_done,
            total_steps: run.total_steps,
            tokens_per_second: run.tokens_per_second,
            predicted_peak_bytes: run.predicted_peak.0,
            measured_peak_bytes: run.measured_peak.map(|peak| peak.0),
            started_at: run.started_at.timestamp(),
        }
    }
}
