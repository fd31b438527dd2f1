//! The state of the queue, the runs, the machines and the replicas at one moment, as an organization's administrators
//! see it: the jobs of its own projects, and counts of all others.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    id::{JobId, OrganizationId, ProjectId, ReplicaId},
    job::{JobState, Priority},
    offer::Offer,
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    db,
    error::{StoreError, named},
    jobs::job,
    runs::{
        offer,
        provider::{self, ProviderState},
    },
};

/// The maximum number of jobs, runs, machines and replicas that a status lists, each. The rest are counted.
pub const MOST_LISTED: i64 = 100;

/// The state at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The time, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// The queued jobs, in the order of their positions.
    pub queue: Excerpt<QueuedJob>,
    /// The runs that have not ended, oldest first.
    pub runs: Excerpt<RunStatus>,
    /// The configured providers, at most [`MOST_LISTED`].
    pub providers: Vec<ProviderState>,
    /// All machines that providers offer.
    pub machines: Vec<Machine>,
    /// The replicas that have not ended, oldest first.
    pub replicas: Excerpt<ReplicaStatus>,
}

/// The first objects that an organization sees, and the number of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Excerpt<T> {
    /// At most [`MOST_LISTED`] objects.
    pub first: Vec<T>,
    /// The number of objects that the organization sees.
    pub total: i64,
    /// The number of the other organizations' objects.
    pub of_others: i64,
}

/// A project of the organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnProject {
    /// The project's ID.
    pub project_id: ProjectId,
    /// The project's name.
    pub name: String,
}

/// A job in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueuedJob {
    /// The job's ID.
    pub job_id: JobId,
    /// The project.
    pub project: OwnProject,
    /// The priority.
    pub priority: Priority,
    /// The position among all waiting jobs, from 1; `None`: not planned yet.
    pub position: Option<i32>,
    /// The reason why it waits; `None`: not planned yet.
    pub reason: Option<String>,
    /// The estimated time of the start; `None`: it cannot be estimated.
    pub estimated_start: Option<DateTime<Utc>>,
    /// The time at which it entered the queue for the first time.
    pub queued_at: DateTime<Utc>,
}

/// A run that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunStatus {
    /// The job's ID.
    pub job_id: JobId,
    /// The job's project.
    pub project: OwnProject,
    /// The job's state.
    pub state: JobState,
    /// The reason why the provider has not started the trainer; `None`: it has, or reported no reason.
    pub reason: Option<String>,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The provider's name.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The number of completed steps of the job.
    pub steps_done: i64,
    /// The number of steps of the job, once known.
    pub total_steps: Option<i64>,
    /// All tokens of the run's steps per second of step time; `None`: no step is done.
    pub tokens_per_second: Option<f64>,
    /// The predicted peak memory.
    pub predicted_peak: Bytes,
    /// The measured peak memory; `None`: no step is done.
    pub measured_peak: Option<Bytes>,
    /// The time of the start.
    pub started_at: DateTime<Utc>,
}

/// A machine that a provider offers, and its use by all organizations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The offer, with its reservations.
    pub offer: Offer,
    /// The number of runs on it.
    pub runs: i64,
    /// The number of replicas on it.
    pub replicas: i64,
}

/// A replica that has not ended, over a base model of the installation or of one of the organization's projects.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaStatus {
    /// The replica's ID.
    pub replica_id: ReplicaId,
    /// The base model's name.
    pub model: String,
    /// The quantization of the base model.
    pub quantization: String,
    /// The state: `wanted`, `launching` or `ready`.
    pub state: String,
    /// The node; `None`: it is not placed yet.
    pub node: Option<ReplicaNode>,
    /// The seconds since it was last requested, or had a request in progress.
    pub idle_seconds: f64,
    /// The time of the request to start it.
    pub created_at: DateTime<Utc>,
}

/// The node of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaNode {
    /// The provider's name.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The reserved memory.
    pub memory: Bytes,
}

/// The projects of an organization.
struct Projects {
    ids: Vec<Uuid>,
    names: HashMap<Uuid, String>,
}

impl Projects {
    fn get(&self, id: Uuid) -> OwnProject {
        OwnProject { project_id: ProjectId::new(id), name: self.names.get(&id).cloned().unwrap_or_default() }
    }
}

/// Reads the state, in a transaction of the organization's administration.
///
/// Row security selects the organization's projects. The other rows are read as the platform: those of these projects,
/// and counts of all others.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn read(tx: &mut PgConnection, owner: OrganizationId) -> Result<Status, StoreError> {
    let projects = projects(tx, owner).await?;
    db::as_platform(tx).await?;
    let read_at = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *tx).await?;
    let status = Status {
        read_at,
        queue: queue(tx, &projects).await?,
        runs: runs(tx, &projects).await?,
        providers: provider::list(tx, MOST_LISTED).await?,
        machines: machines(tx).await?,
        replicas: replicas(tx, &projects).await?,
    };
    db::as_application(tx).await?;
    Ok(status)
}

/// Returns the projects of the organization, including archived ones, whose jobs may still run.
async fn projects(tx: &mut PgConnection, owner: OrganizationId) -> Result<Projects, StoreError> {
    let rows = sqlx::query!("select project_id, name from project where organization_id = $1", owner.uuid())
        .fetch_all(tx)
        .await?;
    let names: HashMap<Uuid, String> = rows.into_iter().map(|row| (row.project_id, row.name)).collect();
    Ok(Projects { ids: names.keys().copied().collect(), names })
}

async fn queue(conn: &mut PgConnection, projects: &Projects) -> Result<Excerpt<QueuedJob>, StoreError> {
    let rows = sqlx::query!(
        r#"select job_id, project_id, priority, queue_position, waiting_reason, estimated_start,
             coalesce(queued_at, created_at) as "queued_at!"
         from job where state = 'queued' and project_id = any($1)
         order by queue_position nulls last, queued_at, job_id limit $2"#,
        &projects.ids,
        MOST_LISTED,
    )
    .fetch_all(&mut *conn)
    .await?;
    let first = rows.into_iter().map(|row| {
        Ok::<_, StoreError>(QueuedJob {
            job_id: JobId::new(row.job_id),
            project: projects.get(row.project_id),
            priority: named("job.priority", &row.priority, "priority")?,
            position: row.queue_position,
            reason: row.waiting_reason,
            estimated_start: row.estimated_start,
            queued_at: row.queued_at,
        })
    });
    let first = first.collect::<Result<Vec<_>, _>>()?;
    let count = sqlx::query!(
        r#"select count(*) as "all!", count(*) filter (where project_id = any($1)) as "own!"
         from job where state = 'queued'"#,
        &projects.ids,
    )
    .fetch_one(conn)
    .await?;
    Ok(Excerpt { first, total: count.own, of_others: count.all - count.own })
}

async fn runs(conn: &mut PgConnection, projects: &Projects) -> Result<Excerpt<RunStatus>, StoreError> {
    let rows = sqlx::query!(
        r#"select job.job_id, job.project_id, job.state, job.waiting_reason, run.attempt, node.provider, node.offer,
             job.steps_done, job.total_steps,
             run.tokens::float8 * 1000 / nullif(run.step_ms, 0)::float8 as "tokens_per_second?",
             run.predicted_peak, run.measured_peak, run.created_at
         from run join node using (node_id) join job on job.job_id = run.job_id
         where run.state <> 'ended' and job.project_id = any($1)
         order by run.run_id limit $2"#,
        &projects.ids,
        MOST_LISTED,
    )
    .fetch_all(&mut *conn)
    .await?;
    let first = rows.into_iter().map(|row| {
        Ok::<_, StoreError>(RunStatus {
            job_id: JobId::new(row.job_id),
            project: projects.get(row.project_id),
            state: job::state(&row.state)?,
            reason: row.waiting_reason,
            attempt: row.attempt,
            provider: row.provider,
            offer: row.offer,
            steps_done: row.steps_done,
            total_steps: row.total_steps,
            tokens_per_second: row.tokens_per_second,
            predicted_peak: Bytes::from_i64(row.predicted_peak),
            measured_peak: row.measured_peak.map(Bytes::from_i64),
            started_at: row.created_at,
        })
    });
    let first = first.collect::<Result<Vec<_>, _>>()?;
    let count = sqlx::query!(
        r#"select count(*) as "all!", count(*) filter (where job.project_id = any($1)) as "own!"
         from run join job on job.job_id = run.job_id where run.state <> 'ended'"#,
        &projects.ids,
    )
    .fetch_one(conn)
    .await?;
    Ok(Excerpt { first, total: count.own, of_others: count.all - count.own })
}

async fn machines(conn: &mut PgConnection) -> Result<Vec<Machine>, StoreError> {
    let offers = offer::list(&mut *conn).await?;
    let rows = sqlx::query!(
        r#"select node.provider, node.offer, count(run.run_id) as "runs!", count(replica.replica_id) as "replicas!"
         from node left join run on run.node_id = node.node_id and run.state <> 'ended'
             left join replica on replica.node_id = node.node_id and replica.state <> 'ended'
         where node.released_at is null group by node.provider, node.offer"#,
    )
    .fetch_all(conn)
    .await?;
    let used: HashMap<_, _> =
        rows.into_iter().map(|row| ((row.provider, row.offer), (row.runs, row.replicas))).collect();
    let machines = offers.into_iter().map(|offer| {
        let key = (offer.provider.clone(), offer.name.clone());
        let (runs, replicas) = used.get(&key).copied().unwrap_or_default();
        Machine { offer, runs, replicas }
    });
    Ok(machines.collect())
}

async fn replicas(conn: &mut PgConnection, projects: &Projects) -> Result<Excerpt<ReplicaStatus>, StoreError> {
    let rows = sqlx::query!(
        r#"select replica.replica_id, base_model.name as model, replica.quantization, replica.state,
             node.provider as "provider?", node.offer as "offer?", node.memory as "memory?", replica.created_at,
             extract(epoch from clock_timestamp() - replica.last_used_at)::float8 as "idle_seconds!"
         from replica join base_model using (base_model_id) left join node on node.node_id = replica.node_id
         where replica.state <> 'ended' and (base_model.project_id is null or base_model.project_id = any($1))
         order by replica.replica_id limit $2"#,
        &projects.ids,
        MOST_LISTED,
    )
    .fetch_all(&mut *conn)
    .await?;
    let first = rows.into_iter().map(|row| {
        let node = row.provider.zip(row.offer).zip(row.memory).map(|((provider, offer), memory)| ReplicaNode {
            provider,
            offer,
            memory: Bytes::from_i64(memory),
        });
        ReplicaStatus {
            replica_id: ReplicaId::new(row.replica_id),
            model: row.model,
            quantization: row.quantization,
            state: row.state,
            node,
            idle_seconds: row.idle_seconds,
            created_at: row.created_at,
        }
    });
    let first = first.collect();
    let count = sqlx::query!(
        r#"select count(*) as "all!",
             count(*) filter (where base_model.project_id is null or base_model.project_id = any($1)) as "own!"
         from replica join base_model using (base_model_id) where replica.state <> 'ended'"#,
        &projects.ids,
    )
    .fetch_one(conn)
    .await?;
    Ok(Excerpt { first, total: count.own, of_others: count.all - count.own })
}
