//! A project's share of the machines: its weight, its limits, and its usage, decayed by age; and the use of its quotas.

use attune_domain::{
    bytes::Bytes,
    id::ProjectId,
    job::Priority,
    queue::{HALF_LIFE_SECONDS, NodeTime, ProjectShare},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::error::{StoreError, named};

/// The age in seconds above which usage does not count: ten half-lives, after which a thousandth would be left.
pub const WINDOW_SECONDS: f64 = 10.0 * HALF_LIFE_SECONDS;

/// The constraint that refuses settings of a project that does not exist.
pub const PROJECT_KEY: &str = "project_queue_project_id_fkey";

/// The settings of a project in the queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The weight; twice the weight is twice the share.
    pub weight: f64,
    /// The maximum number of running jobs; `None`: no limit.
    pub max_running_jobs: Option<u32>,
    /// The maximum number of node-hours in a calendar month (UTC); `None`: no limit.
    pub max_node_hours: Option<f64>,
    /// The maximum number of stored bytes; `None`: that of the installation.
    pub max_stored_bytes: Option<Bytes>,
    /// The maximum number of replicas of its deployments together; `None`: `MOST_REPLICAS_OF_PROJECT`.
    pub max_replicas: Option<u32>,
    /// The highest priority that a job of the project may have.
    pub max_priority: Priority,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weight: 1.0,
            max_running_jobs: None,
            max_node_hours: None,
            max_stored_bytes: None,
            max_replicas: None,
            max_priority: Priority::Normal,
        }
    }
}

/// Returns the settings of a project; the defaults, if none were set.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn get(conn: &mut PgConnection, project: ProjectId) -> Result<Settings, StoreError> {
    let row = sqlx::query!(
        "select weight, max_running_jobs, max_node_hours, max_stored_bytes, max_replicas, max_priority
         from project_queue
         where project_id = $1",
        project.uuid(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(Settings::default()) };
    Ok(Settings {
        weight: row.weight,
        max_running_jobs: row.max_running_jobs.map(i32::unsigned_abs),
        max_node_hours: row.max_node_hours,
        max_stored_bytes: row.max_stored_bytes.map(Bytes::from_i64),
        max_replicas: row.max_replicas.map(i32::unsigned_abs),
        max_priority: named("project_queue.max_priority", &row.max_priority, "priority")?,
    })
}

/// Sets the settings of a project. The transaction must have the rights of an administrator of the installation
/// ([`crate::db::as_installation`]).
///
/// # Errors
/// [`StoreError::Conflict`] on [`PROJECT_KEY`]: the project does not exist. [`StoreError::Database`].
pub async fn set(tx: &mut PgConnection, project: ProjectId, settings: Settings) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into project_queue (project_id, weight, max_running_jobs, max_node_hours, max_stored_bytes,
             max_priority, max_replicas)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (project_id) do update set weight = excluded.weight,
             max_running_jobs = excluded.max_running_jobs, max_node_hours = excluded.max_node_hours,
             max_stored_bytes = excluded.max_stored_bytes, max_priority = excluded.max_priority,
             max_replicas = excluded.max_replicas, changed_at = now()",
        project.uuid(),
        settings.weight,
        settings.max_running_jobs.map(|most| i32::try_from(most).unwrap_or(i32::MAX)),
        settings.max_node_hours,
        settings.max_stored_bytes.map(Bytes::to_i64),
        settings.max_priority.name(),
        settings.max_replicas.map(|most| i32::try_from(most).unwrap_or(i32::MAX)),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The use of a project's quotas, apart from what it stores ([`crate::files::storage`]) and spends
/// ([`crate::tenancy::money`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuotaUse {
    /// The number of jobs that hold a machine.
    pub running_jobs: i64,
    /// The node-seconds of this month, active runs included, refunds subtracted.
    pub node_seconds: f64,
    /// The beginning of the next month, in UTC.
    pub next_month: DateTime<Utc>,
}

/// Returns the use of a project's quotas. For a transaction of the platform: tenants cannot see reservations of nodes.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn used(conn: &mut PgConnection, project: ProjectId) -> Result<QuotaUse, StoreError> {
    Ok(sqlx::query_as!(
        QuotaUse,
        r#"select (select count(*) from job where project_id = $1
                 and state in ('provisioning', 'running', 'pausing', 'cancelling')) as "running_jobs!",
             node_seconds_of_month($1) as "node_seconds!",
             (date_trunc('month', now() at time zone 'UTC') + interval '1 month') at time zone 'UTC' as "next_month!""#,
        project.uuid(),
    )
    .fetch_one(conn)
    .await?)
}

/// Returns the shares of all projects with jobs that wait or hold a node. The usage is the sum of
/// [`attune_domain::queue::decayed_use`] over the runs of the last [`WINDOW_SECONDS`]; refunds change no share. For the
/// platform's own work.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn shares(conn: &mut PgConnection) -> Result<Vec<ProjectShare>, StoreError> {
    let rows = sqlx::query!(
        r#"with ended as (
             -- 2^(−age / half-life), integrated from the start of the node to its end. The charge of each run has both,
             -- so no run, job or node is read; usage_node_time has all columns.
             select project_id, sum(
                 power(2::float8, -greatest(extract(epoch from now() - used_at)::float8 / $1, 0))
                 - power(2::float8, -least((extract(epoch from now() - used_at)::float8 + node_ms / 1000.0) / $1, 100)))
                 as halves
             from usage where kind = 'training' and used_at > now() - make_interval(secs => $2)
             group by project_id),
         active as (
             select job.project_id, sum(
                 1 - power(2::float8, -least(extract(epoch from now() - node.created_at)::float8 / $1, 100))) as halves
             from run join job on job.job_id = run.job_id join node using (node_id)
             where run.state <> 'ended' group by job.project_id),
         used as (
             select project_id, $1::float8 / ln(2::float8) * sum(halves) as seconds
             from (select * from ended union all select * from active) as parts group by project_id)
         select live.project_id as "project_id!", coalesce(project_queue.weight, 1) as "weight!",
             project_queue.max_running_jobs as "max_running_jobs?", coalesce(used.seconds, 0) as "used!",
             project_queue.max_node_hours as "max_node_hours?",
             case when project_queue.max_node_hours is not null then node_seconds_of_month(live.project_id) end
                 as "node_seconds?",
             extract(epoch from (date_trunc('month', now() at time zone 'UTC') + interval '1 month')
                 at time zone 'UTC')::float8 as "next_month!"
         from (select distinct project_id from job
                 where state in ('queued', 'provisioning', 'running', 'pausing', 'cancelling')) as live
             left join project_queue using (project_id) left join used using (project_id)
         order by live.project_id"#,
        HALF_LIFE_SECONDS,
        WINDOW_SECONDS,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ProjectShare {
            project: ProjectId::new(row.project_id),
            weight: row.weight,
            used: row.used.max(0.0),
            max_running: row.max_running_jobs.map(i32::unsigned_abs),
            node_time: row.max_node_hours.map(|hours| NodeTime {
                used: row.node_seconds.unwrap_or(0.0),
                max: hours * 3600.0,
                resets_at: row.next_month,
            }),
        })
        .collect())
}
