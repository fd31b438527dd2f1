//! Why a queued job is not placed yet: in its row for whoever looks, and as an event where it waits for its own plan.

use attune_domain::id::JobId;
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    jobs::job_event::{self, Level},
};

/// The `code` of the event that [`for_plan`] writes.
pub const WAITING_FOR_PLAN: &str = "waiting_for_plan";

/// Writes down why a queued job waits. A job that is not queued any more is left as it is.
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

/// As [`note`], of a job that waits for the plan that it began with: an event says so too, once in each wait.
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
