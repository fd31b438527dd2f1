//! Copies of rows in bulk, for measurements. Triggers and foreign keys are off meanwhile, so the caller is a superuser.

use attune_domain::id::{JobId, ProjectId, RunId};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{db, error::StoreError};

/// Adds `each` waiting copies of a job to each project.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn queue(pool: &PgPool, original: JobId, projects: &[ProjectId], each: i32) -> Result<(), StoreError> {
    let projects: Vec<Uuid> = projects.iter().map(|project| project.uuid()).collect();
    let mut tx = db::begin(pool).await?;
    without_triggers(&mut tx).await?;
    sqlx::query(
        "insert into job select copy.* from job as original, unnest($2::uuid[]) as project (id),
             generate_series(1, $3) as number,
             lateral jsonb_populate_record(original, jsonb_build_object('job_id', gen_random_uuid(),
                 'project_id', project.id, 'state', 'queued', 'queued_at', clock_timestamp(), 'number', number)) as copy
         where original.job_id = $1",
    )
    .bind(original.uuid())
    .bind(projects)
    .bind(each)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Adds `count` copies of a job that succeeded, with its run, its node and its charge; they ended during the last year.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn history(pool: &PgPool, original: RunId, count: i32) -> Result<(), StoreError> {
    let mut tx = db::begin(pool).await?;
    without_triggers(&mut tx).await?;
    sqlx::query(
        "with original as (select * from run where run_id = $1),
         job_copy as (
             insert into job select copy.* from job as one, generate_series(1, $2) as number,
                 lateral jsonb_populate_record(one, jsonb_build_object('job_id', gen_random_uuid(),
                     'run_id', gen_random_uuid(),
                     'finished_at', now() - make_interval(secs => 31536000.0 * number / $2))) as copy
             where one.job_id = (select job_id from original)
             returning job_id, run_id, finished_at),
         node_copy as (
             insert into node select copy.* from job_copy, node as one, lateral jsonb_populate_record(one,
                 jsonb_build_object('node_id', job_copy.run_id, 'released_at', job_copy.finished_at)) as copy
             where one.node_id = (select node_id from original)),
         usage_copy as (
             insert into usage select copy.* from job_copy, usage as one, lateral jsonb_populate_record(one,
                 jsonb_build_object('usage_id', gen_random_uuid(), 'job_id', job_copy.job_id,
                     'run_id', job_copy.run_id, 'used_at', job_copy.finished_at)) as copy
             where one.run_id = $1)
         insert into run select copy.* from job_copy, run as one, lateral jsonb_populate_record(one,
             jsonb_build_object('run_id', job_copy.run_id, 'job_id', job_copy.job_id, 'node_id', job_copy.run_id,
                 'ended_at', job_copy.finished_at)) as copy
         where one.run_id = $1",
    )
    .bind(original.uuid())
    .bind(count)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    sqlx::query("vacuum (analyze) job, run, node, usage").execute(pool).await?;
    Ok(())
}

/// Takes a waiting job out of the queue, and keeps its measures.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn set_aside(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query("update job set state = 'paused' where job_id = $1").bind(job.uuid()).execute(conn).await?;
    Ok(())
}

/// Removes all waiting jobs, and ends all running ones. Paused ones stay.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn clear(pool: &PgPool) -> Result<(), StoreError> {
    let mut tx = db::begin(pool).await?;
    without_triggers(&mut tx).await?;
    for statement in [
        "delete from apalis.jobs",
        "delete from job where state = 'queued'",
        "update job set state = 'cancelled', finished_at = now()
         where state not in ('succeeded', 'failed', 'cancelled', 'paused')",
        "update run set state = 'ended', ended_at = now() where state <> 'ended'",
        "update node set released_at = now() where released_at is null",
    ] {
        sqlx::query(statement).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    sqlx::query("vacuum (analyze) apalis.jobs, job, run, node, usage").execute(pool).await?;
    Ok(())
}

/// Returns the IDs of the waiting jobs.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn waiting(conn: &mut PgConnection) -> Result<Vec<JobId>, StoreError> {
    let jobs: Vec<Uuid> = sqlx::query_scalar("select job_id from job where state = 'queued'").fetch_all(conn).await?;
    Ok(jobs.into_iter().map(JobId::new).collect())
}

async fn without_triggers(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local session_replication_role = replica").execute(tx).await?;
    Ok(())
}
