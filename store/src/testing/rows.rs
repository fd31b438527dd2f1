//! Rows that a test reads or changes by a statement of its own.

use attune_domain::id::{JobId, ProjectId};
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

/// Executes a statement; `$1` is the project's ID.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn change_project(pool: &PgPool, statement: &'static str, project: ProjectId) -> Result<(), StoreError> {
    sqlx::query(statement).bind(project.uuid()).execute(pool).await?;
    Ok(())
}

/// Returns the number that a statement selects; `$1` is the text.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn number(pool: &PgPool, statement: &'static str, text: &str) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar(statement).bind(text).fetch_one(pool).await?)
}

/// Returns the two numbers that a statement without parameters selects.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn two_numbers(pool: &PgPool, statement: &'static str) -> Result<(i64, i64), StoreError> {
    Ok(sqlx::query_as(statement).fetch_one(pool).await?)
}
