//! Counts over the rows of all projects, for the scheduler's metrics.

use attune_domain::{bytes::Bytes, id::ProjectId, job::Priority};
use sqlx::PgConnection;

use crate::error::{StoreError, named};

/// The counts at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gauges {
    /// The waiting jobs.
    pub waiting: Vec<Waiting>,
    /// The jobs that have not ended, by state.
    pub jobs: Vec<Count>,
    /// The runs that have not ended, by state.
    pub runs: Vec<Count>,
    /// The replicas that have not ended, by state.
    pub replicas: Vec<Count>,
    /// The jobs that have not ended, by project and state, of the projects with the most.
    pub projects: Vec<(ProjectId, Count)>,
    /// The number of webhook deliveries that should be attempted now.
    pub deliveries_due: i64,
    /// The number of webhook deliveries that wait for their next attempt.
    pub deliveries_later: i64,
}

/// Waiting jobs that need the same memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// The priority.
    pub priority: Priority,
    /// The memory that each needs; `None`: not measured yet.
    pub need: Option<Bytes>,
    /// The number of jobs.
    pub jobs: i64,
    /// The seconds since the oldest entered the queue.
    pub oldest_seconds: f64,
}

/// A number of objects in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The state's name.
    pub state: String,
    /// The number.
    pub count: i64,
}

/// Counts the rows; `projects`: the number of projects that are counted separately.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn read(conn: &mut PgConnection, projects: u32) -> Result<Gauges, StoreError> {
    let waiting = waiting(conn).await?;
    let (jobs, runs, replicas) = states(conn).await?;
    let projects = by_project(conn, projects).await?;
    let deliveries = sqlx::query!(
        r#"select count(*) filter (where next_attempt_at <= now()) as "due!",
             count(*) filter (where next_attempt_at > now()) as "later!"
         from webhook_delivery where state = 'pending'"#,
    )
    .fetch_one(conn)
    .await?;
    let (deliveries_due, deliveries_later) = (deliveries.due, deliveries.later);
    Ok(Gauges { waiting, jobs, runs, replicas, projects, deliveries_due, deliveries_later })
}

async fn waiting(conn: &mut PgConnection) -> Result<Vec<Waiting>, StoreError> {
    let rows = sqlx::query!(
        r#"select priority, need_bytes, count(*) as "jobs!",
             extract(epoch from now() - min(coalesce(queued_at, created_at)))::float8 as "oldest_seconds!"
         from job where state = 'queued' group by priority, need_bytes order by priority, need_bytes"#,
    )
    .fetch_all(conn)
    .await?;
    let waiting = rows.into_iter().map(|row| {
        Ok::<_, StoreError>(Waiting {
            priority: named("job.priority", &row.priority, "priority")?,
            need: row.need_bytes.map(Bytes::from_i64),
            jobs: row.jobs,
            oldest_seconds: row.oldest_seconds,
        })
    });
    waiting.collect()
}

/// Returns the counts of jobs, runs and replicas.
async fn states(conn: &mut PgConnection) -> Result<(Vec<Count>, Vec<Count>, Vec<Count>), StoreError> {
    let jobs = sqlx::query_as!(
        Count,
        r#"select state, count(*) as "count!" from job where state not in ('succeeded', 'failed', 'cancelled')
         group by state order by state"#,
    )
    .fetch_all(&mut *conn)
    .await?;
    let runs = sqlx::query_as!(
        Count,
        r#"select state, count(*) as "count!" from run where state <> 'ended' group by state order by state"#,
    )
    .fetch_all(&mut *conn)
    .await?;
    let replicas = sqlx::query_as!(
        Count,
        r#"select state, count(*) as "count!" from replica where state <> 'ended' group by state order by state"#,
    )
    .fetch_all(conn)
    .await?;
    Ok((jobs, runs, replicas))
}

async fn by_project(conn: &mut PgConnection, projects: u32) -> Result<Vec<(ProjectId, Count)>, StoreError> {
    if projects == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        r#"select project_id, state, count(*) as "count!"
         from job join (select project_id from job where state not in ('succeeded', 'failed', 'cancelled')
             group by project_id order by count(*) desc, project_id limit $1) as most using (project_id)
         where state not in ('succeeded', 'failed', 'cancelled')
         group by project_id, state order by project_id, state"#,
        i64::from(projects),
    )
    .fetch_all(conn)
    .await?;
    let counted = |(project, state, count)| (ProjectId::new(project), Count { state, count });
    Ok(rows.into_iter().map(|row| counted((row.project_id, row.state, row.count))).collect())
}
