//! The trace of a job: the span of the request that created it, which the job's validation, starts and runs continue.

use attune_domain::{id::JobId, run::traceparent::Traceparent};
use sqlx::PgConnection;

use crate::error::StoreError;

/// Returns the span that created the job; `None`: its request was not traced, or there is no such job.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of(conn: &mut PgConnection, job: JobId) -> Result<Option<Traceparent>, StoreError> {
    let row =
        sqlx::query_scalar!("select traceparent from job where job_id = $1", job.uuid()).fetch_optional(conn).await?;
    Ok(row.flatten().and_then(|text| text.parse().ok()))
}
