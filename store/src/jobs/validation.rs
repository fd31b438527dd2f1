//! Validation of jobs' files: the number of attempts, and the jobs that wait for it.

use attune_domain::id::{JobId, ProjectId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::StoreError;

/// The maximum number of validation attempts. A job whose attempts all end without an outcome fails.
pub const MAX_VALIDATION_ATTEMPTS: i32 = 3;

/// The maximum number of consecutive attempts that end with their scheduler. They do not count among the attempts; a
/// job that exceeds this number fails, since its files may be what ends the scheduler.
pub const MAX_VALIDATION_INTERRUPTIONS: i32 = 20;

/// An attempt that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The number of attempts just before this one that ended with their scheduler.
    pub interruptions: i32,
}

/// Counts an attempt that starts. One that began under another leader and has not ended was ended with that scheduler:
/// the new attempt has its number. `None`: the job is not to be validated any more.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn begin(conn: &mut PgConnection, job: JobId) -> Result<Option<Begun>, StoreError> {
    Ok(sqlx::query_as!(
        Begun,
        "update job set validation_term = leadership.term,
             validation_attempts = validation_attempts
                 + case when validation_term <> leadership.term then 0 else 1 end,
             validation_interruptions = validation_interruptions
                 + case when validation_term <> leadership.term then 1 else 0 end
         from leadership
         where job_id = $1 and state = 'validating'
         returning validation_attempts as attempt, validation_interruptions as interruptions",
        job.uuid(),
    )
    .fetch_optional(conn)
    .await?)
}

/// Records that an attempt ended without an outcome, and counts.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query!("update job set validation_term = null, validation_interruptions = 0 where job_id = $1", job.uuid(),)
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that an attempt ended for a transient reason that is not the job's fault: it does not count.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn take_back(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query!(
        "update job set validation_attempts = greatest(validation_attempts - 1, 0), validation_term = null,
             validation_interruptions = 0
         where job_id = $1",
        job.uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Returns the oldest job of each project that waits for its validation, without the projects in `busy` and the jobs in
/// `tried`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn waiting(
    conn: &mut PgConnection,
    busy: &[ProjectId],
    tried: &[JobId],
) -> Result<Vec<(ProjectId, JobId)>, StoreError> {
    let busy: Vec<Uuid> = busy.iter().map(|project| project.uuid()).collect();
    let tried: Vec<Uuid> = tried.iter().map(|job| job.uuid()).collect();
    let rows = sqlx::query!(
        "select distinct on (project_id) project_id, job_id from job
         where state = 'validating' and project_id <> all($1) and job_id <> all($2) order by project_id, job_id",
        &busy,
        &tried,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (ProjectId::new(row.project_id), JobId::new(row.job_id))).collect())
}
