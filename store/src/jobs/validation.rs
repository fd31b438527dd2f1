//! Checks of jobs' files: how often each was begun in vain, and which is the next of a project.

use attune_domain::id::{JobId, ProjectId};
use sqlx::PgConnection;

use crate::error::StoreError;

/// Attempts to check a job's files, at most. What ends that many without an outcome ends the job.
pub const MAX_VALIDATION_ATTEMPTS: i32 = 3;

/// Counts an attempt that begins; gives its number. `None`: the job is not to be validated any more.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn begin(conn: &mut PgConnection, job: JobId) -> Result<Option<i32>, StoreError> {
    Ok(sqlx::query_scalar!(
        "update job set validation_attempts = validation_attempts + 1
         where job_id = $1 and state = 'validating' returning validation_attempts",
        job.uuid(),
    )
    .fetch_optional(conn)
    .await?)
}

/// Takes an attempt back: it failed for a reason that passes and is not the job's.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn take_back(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query!(
        "update job set validation_attempts = greatest(validation_attempts - 1, 0) where job_id = $1",
        job.uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The project's next job behind `job` whose files are to be checked.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn next(conn: &mut PgConnection, project: ProjectId, job: JobId) -> Result<Option<JobId>, StoreError> {
    let next = sqlx::query_scalar!(
        "select job_id from job where project_id = $1 and state = 'validating' and job_id > $2 order by job_id limit 1",
        project.uuid(),
        job.uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(next.map(JobId::new))
}
