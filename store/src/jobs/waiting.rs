//! Positions, reasons and estimated starts of waiting jobs: stored in their rows after each planning pass. A job that
//! waits for its own plan also gets an event.

use attune_domain::id::{JobId, ProjectId};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::StoreError,
    jobs::job_event::{self, Level},
};

/// The `code` of the event that [`for_plan`] writes.
pub const WAITING_FOR_PLAN: &str = "waiting_for_plan";

/// The change of an estimated start, in seconds, below which the stored one is kept.
const KEPT_SECONDS: f64 = 5.0;

/// A job's place in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The job's ID.
    pub job: JobId,
    /// The position, from 1.
    pub position: u32,
    /// The human-readable reason.
    pub reason: String,
    /// The expected start in Unix seconds; `None`: unknown.
    pub estimated_start: Option<f64>,
}

/// Stores the places of waiting jobs, in one statement, and returns the number of rows that it changed. A job that is
/// not queued any more is left unchanged.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn store(tx: &mut PgConnection, places: &[Place]) -> Result<u64, StoreError> {
    let jobs: Vec<Uuid> = places.iter().map(|place| place.job.uuid()).collect();
    let positions: Vec<i32> = places.iter().map(|place| i32::try_from(place.position).unwrap_or(i32::MAX)).collect();
    let reasons: Vec<String> = places.iter().map(|place| place.reason.clone()).collect();
    let starts: Vec<Option<f64>> = places.iter().map(|place| place.estimated_start).collect();
    let stored = sqlx::query!(
        "update job set queue_position = place.position, waiting_reason = place.reason,
             estimated_start = to_timestamp(place.start)
         from unnest($1::uuid[], $2::integer[], $3::text[], $4::float8[]) as place (job_id, position, reason, start)
         where job.job_id = place.job_id and job.state = 'queued'
             and (job.queue_position is distinct from place.position
                 or job.waiting_reason is distinct from place.reason
                 or (job.estimated_start is null) <> (place.start is null)
                 or abs(extract(epoch from job.estimated_start)::float8 - place.start) > $5)",
        &jobs,
        &positions,
        &reasons,
        &starts as &[Option<f64>],
        KEPT_SECONDS,
    )
    .execute(tx)
    .await?;
    Ok(stored.rows_affected())
}

/// Writes an event that a job waits for the plan that it began with, once per wait.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn for_plan(tx: &mut PgConnection, job: JobId, reason: &str) -> Result<(), StoreError> {
    let last = sqlx::query_scalar!(
        "select data ->> 'code' from job_event where job_id = $1 and type = 'message' order by sequence desc limit 1",
        job.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if last.flatten().as_deref() == Some(WAITING_FOR_PLAN) {
        return Ok(());
    }
    job_event::message_with(tx, job, Level::Info, reason, &json!({ "code": WAITING_FOR_PLAN })).await
}

/// The jobs of a project around one of its waiting jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbors {
    /// The project's jobs that are ahead of it in the queue.
    pub ahead: i64,
    /// The project's jobs that hold a machine.
    pub running: i64,
}

/// Counts the project's jobs ahead of `job`, and those that hold a machine.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn neighbors(conn: &mut PgConnection, project: ProjectId, job: JobId) -> Result<Neighbors, StoreError> {
    Ok(sqlx::query_as!(
        Neighbors,
        r#"select count(*) filter (where state = 'queued' and queue_position < (
                 select queue_position from job as this where this.job_id = $2 and this.project_id = $1)) as "ahead!",
             count(*) filter (where state in ('provisioning', 'running', 'pausing', 'cancelling')) as "running!"
         from job where project_id = $1 and state in ('queued', 'provisioning', 'running', 'pausing', 'cancelling')"#,
        project.uuid(),
        job.uuid(),
    )
    .fetch_one(conn)
    .await?)
}
