//! Jobs whose queue message was lost, or is due again.

use attune_domain::{id::JobId, job::JobState};
use sqlx::PgConnection;

use crate::error::StoreError;

/// Returns jobs in `state` whose last message is older than `seconds`, or precedes the end of a delay that is over,
/// oldest first; their messages count as pushed now, so the caller must push them in the same transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(tx: &mut PgConnection, state: JobState, seconds: f64, limit: i64) -> Result<Vec<JobId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "update job set pushed_at = now()
         where job_id in (select job_id from job where state = $1
                 and (pushed_at < now() - make_interval(secs => $2) or (retry_at > pushed_at and retry_at <= now()))
             order by job_id limit $3 for update skip locked)
         returning job_id",
        state.name(),
        seconds,
        limit,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(JobId::new).collect())
}
