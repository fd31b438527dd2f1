//! The reason why a queued job is not placed yet: stored in its row, and also as an event if it waits for its own plan.

use attune_domain::id::JobId;
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    jobs::job_event::{self, Level},
};

/// The `code` of the event that [`for_plan`] writes.
pub const WAITING_FOR_PLAN: &str = "waiting_for_plan";

/// Stores the reason why a queued job waits. A job that is not queued any more is left unchanged.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn note(tx: &mut PgConnection, job: JobId, reason: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update job set waiting_reason = $2
         where job_id = $1 and state = 'queued' and waiting_reason is distinct from $2",
        job.uuid(),
        reason,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// As [`note`], for a job that waits for the plan that it began with: an event reports it too, once per wait.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn for_plan(tx: &mut PgConnection, job: JobId, reason: &str) -> Result<(), StoreError> {
    note(tx, job, reason).await?;
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
