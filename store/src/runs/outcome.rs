//! The figures of a run's end, for metrics.

use attune_domain::{id::RunId, job::JobState, run::Report};
use sqlx::PgConnection;

use crate::{error::StoreError, jobs::job};

/// The end of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunEnd {
    /// The job's state afterwards.
    pub job_state: JobState,
    /// The measured duration divided by the predicted one; `None`: nothing was predicted, or it was not the job's first
    /// attempt, which alone has the whole job's duration.
    pub duration_ratio: Option<f64>,
}

/// Returns the end of a run.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn of(conn: &mut PgConnection, run: RunId) -> Result<RunEnd, StoreError> {
    let row = sqlx::query!(
        r#"select job.state,
             case when run.attempt = 1 then extract(epoch from coalesce(run.ended_at, now()) - run.created_at)::float8
                 / nullif(job.expected_seconds, 0) end as "duration_ratio?"
         from run join job on job.job_id = run.job_id where run.run_id = $1"#,
        run.uuid(),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(StoreError::NotFound("run"))?;
    Ok(RunEnd { job_state: job::state(&row.state)?, duration_ratio: row.duration_ratio })
}

/// Returns the number of a report's first events that were applied before, and locks the run until the transaction
/// ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn applied(tx: &mut PgConnection, run: RunId, report: &Report) -> Result<usize, StoreError> {
    if report.events.is_empty() {
        return Ok(0);
    }
    let next = sqlx::query_scalar!("select next_sequence from run where run_id = $1 for update", run.uuid())
        .fetch_optional(tx)
        .await?;
    let first = i64::try_from(report.first_sequence).unwrap_or(i64::MAX);
    Ok(usize::try_from(next.unwrap_or(0).saturating_sub(first)).unwrap_or(0))
}
