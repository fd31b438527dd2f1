//! Rows that a test reads or changes by a statement of its own.

use attune_domain::id::JobId;
use sqlx::PgPool;
use uuid::Uuid;

use crate::error::StoreError;

/// Executes statements without parameters.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn execute(pool: &PgPool, statements: &'static str) -> Result<(), StoreError> {
    sqlx::raw_sql(statements).execute(pool).await?;
    Ok(())
}

/// Executes a statement; `$1` are the IDs of the jobs.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn change_jobs(pool: &PgPool, statement: &'static str, jobs: &[JobId]) -> Result<(), StoreError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|job| job.uuid()).collect();
    sqlx::query(statement).bind(jobs).execute(pool).await?;
    Ok(())
}

/// Returns the text that a statement selects; `$1` is the job's ID.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_job(pool: &PgPool, statement: &'static str, job: JobId) -> Result<String, StoreError> {
    Ok(sqlx::query_scalar(statement).bind(job.uuid()).fetch_one(pool).await?)
}
