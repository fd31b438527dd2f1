//! A project's share of the machines: its weight, its limits, and its usage, decayed by age.

use attune_domain::{
    id::ProjectId,
    job::Priority,
    queue::{HALF_LIFE_SECONDS, ProjectShare},
};
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
    /// The highest priority that a job of the project may have.
    pub max_priority: Priority,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, max_running_jobs: None, max_priority: Priority::Normal }
    }
}

/// Returns the settings of a project; the defaults, if none were set.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn get(conn: &mut PgConnection, project: ProjectId) -> Result<Settings, StoreError> {
    let row = sqlx::query!(
        "select weight, max_running_jobs, max_priority from project_queue where project_id = $1",
        project.uuid(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(Settings::default()) };
    Ok(Settings {
        weight: row.weight,
        max_running_jobs: row.max_running_jobs.map(i32::unsigned_abs),
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
        "insert into project_queue (project_id, weight, max_running_jobs, max_priority) values ($1, $2, $3, $4)
         on conflict (project_id) do update set weight = excluded.weight,
             max_running_jobs = excluded.max_running_jobs, max_priority = excluded.max_priority, changed_at = now()",
        project.uuid(),
        settings.weight,
        settings.max_running_jobs.map(|most| i32::try_from(most).unwrap_or(i32::MAX)),
        settings.max_priority.name(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the shares of all projects with jobs that wait or hold a node. The usage is the sum of
/// [`attune_domain::queue::decayed_use`] over the runs of the last [`WINDOW_SECONDS`]. For the platform's own work.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn shares(conn: &mut PgConnection) -> Result<Vec<ProjectShare>, StoreError> {
    let rows = sqlx::query!(
        r#"with used as (
             -- 2^(−age / half-life), integrated from the start of the node to its end.
             select job.project_id, $1::float8 / ln(2::float8) * sum(
                 power(2::float8, -greatest(extract(epoch from now() - coalesce(run.ended_at, now())), 0)::float8 / $1)
                 - power(2::float8, -least(extract(epoch from now() - node.created_at)::float8 / $1, 100))) as seconds
             from run join job on job.job_id = run.job_id join node using (node_id)
             where run.state <> 'ended'
                 or (run.state = 'ended' and run.ended_at > now() - make_interval(secs => $2))
             group by job.project_id)
         select live.project_id as "project_id!", coalesce(project_queue.weight, 1) as "weight!",
             project_queue.max_running_jobs as "max_running_jobs?", coalesce(used.seconds, 0) as "used!"
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
        })
        .collect())
}
