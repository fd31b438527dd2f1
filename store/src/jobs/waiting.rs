//! Positions, reasons and estimated starts of waiting jobs: stored in their rows after each planning pass. A job that
//! waits for its own plan also gets an event.

use attune_domain::{
    id::{JobId, ProjectId},
    text::tenant_text::for_tenant,
};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{error::StoreError, ids};

/// The `code` of the event that [`for_plan`] writes.
pub const WAITING_FOR_PLAN: &str = "waiting_for_plan";

/// The change of an estimated start, in seconds, below which the stored one is kept.
const KEPT_SECONDS: f64 = 5.0;

/// The position from which a place is exact to one part in as many only. After each start, all jobs behind it move up
/// by one: without this, each planning pass would write all rows of a deep queue.
const EXACT_POSITIONS: i32 = 50;

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
/// not queued any more is left unchanged, and so is one far behind whose place has hardly changed.
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
             and (job.queue_position is null
                 or (place.position <= $6 and (job.queue_position <> place.position
                     or job.waiting_reason is distinct from place.reason))
                 or abs(job.queue_position - place.position) * $6 > place.position
                 or translate(job.waiting_reason, '0123456789', '') is distinct from
                     translate(place.reason, '0123456789', '')
                 or (job.estimated_start is null) <> (place.start is null)
                 or abs(extract(epoch from job.estimated_start)::float8 - place.start) > case when place.position <= $6
                     then $5 else greatest($5, (place.start - extract(epoch from now())::float8) / $6) end)",
        &jobs,
        &positions,
        &reasons,
        &starts as &[Option<f64>],
        KEPT_SECONDS,
        EXACT_POSITIONS,
    )
    .execute(tx)
    .await?;
    Ok(stored.rows_affected())
}

/// Writes an event for each job of `waits`, with its reason, that it waits for the plan that it began with: once per
/// wait. One statement for all.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn for_plan(tx: &mut PgConnection, waits: &[(JobId, String)]) -> Result<(), StoreError> {
    let events: Vec<Uuid> = waits.iter().map(|_| ids::id::<attune_domain::id::JobEvent>().uuid()).collect();
    let jobs: Vec<Uuid> = waits.iter().map(|(job, _)| job.uuid()).collect();
    let reasons: Vec<String> = waits.iter().map(|(_, reason)| for_tenant(reason)).collect();
    // As for every event, the row of the job is locked before the event's number is assigned.
    sqlx::query!(
        "insert into job_event (job_event_id, job_id, level, type, message, data)
         select wait.event_id, wait.job_id, 'info', 'message', wait.reason, $4::jsonb
         from unnest($1::uuid[], $2::uuid[], $3::text[]) as wait (event_id, job_id, reason)
             join job on job.job_id = wait.job_id
         where (select last.data ->> 'code' from job_event as last
             where last.job_id = wait.job_id and last.type = 'message' order by last.sequence desc limit 1)
             is distinct from $5::text
         for update of job",
        &events,
        &jobs,
        &reasons,
        json!({ "code": WAITING_FOR_PLAN }),
        WAITING_FOR_PLAN,
    )
    .execute(tx)
    .await?;
    Ok(())
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
