//! Validation of jobs' files: the number of attempts, and the order within a project.

use attune_domain::id::{JobId, ProjectId};
use sqlx::PgConnection;

use crate::error::StoreError;

/// The maximum number of validation attempts. A job whose attempts all end without an outcome fails.
pub const MAX_VALIDATION_ATTEMPTS: i32 = 3;

/// Counts an attempt that starts; returns its number. `None`: the job is not to be validated any more.
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

/// Reverts the count of an attempt: it failed for a transient reason that is not the job's fault.
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

/// Returns the project's next job after `job` that is to be validated.
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
