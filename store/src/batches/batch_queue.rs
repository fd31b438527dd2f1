//! The queue of batches for workers. A worker holds a batch by a lease in its row; the lease ends when the worker
//! releases the batch or stops sending heartbeats. All times are the database's.
//!
//! Projects take turns: a free worker serves the project with the fewest workers, and a worker releases its batch when
//! its next heartbeat shows that another project with fewer workers waits.

use attune_domain::{
    batch::BatchState,
    id::{BatchId, ProjectId},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    batches::batch::{Batch, select, state},
    error::StoreError,
};

/// The longest delay after a failure, in seconds.
const LONGEST_PAUSE_SECONDS: f64 = 300.0;

/// The delay after an attempt that waited for a replica in vain, in seconds.
const NOT_READY_PAUSE_SECONDS: f64 = 60.0;

/// The longest delay after a failure of a batch that was cancelled, in seconds.
const CANCELLED_PAUSE_SECONDS: f64 = 5.0;

/// The batches that a worker claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claims {
    /// All batches.
    All,
    /// Batches that only have to be ended: they were cancelled, or their completion window has passed.
    Ending,
}

/// A claimed batch.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The batch.
    pub batch: Batch,
    /// The number of consecutive attempts without progress so far.
    pub failures: i32,
}

/// Claims a batch without a worker, or whose worker sent no heartbeat for `stale_seconds`: one of the project with the
/// fewest workers, and there the one that has waited longest. A worker that was lost counts as an attempt without
/// progress.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(
    tx: &mut PgConnection,
    worker: Uuid,
    stale_seconds: f64,
    claims: Claims,
) -> Result<Option<Claimed>, StoreError> {
    let row = sqlx::query!(
        "update batch set worker = $1, heartbeat_at = now(),
             failures = failures + case when worker is null then 0 else 1 end,
             next_try_at = case when worker is null then next_try_at
                 else now() + make_interval(secs => least($4, power(2, least(failures, 20)))) end
         where batch_id = (
             select batch_id from batch b where state in ('validating', 'in_progress', 'finalizing', 'cancelling')
                 and (worker is null or heartbeat_at < now() - make_interval(secs => $2)) and next_try_at <= now()
                 and (not $3 or state = 'cancelling' or expires_at < now())
             order by (select count(*) from batch o where o.project_id = b.project_id and o.worker is not null
                     and o.state in ('validating', 'in_progress', 'finalizing', 'cancelling')
                     and o.heartbeat_at >= now() - make_interval(secs => $2)),
                 coalesce(last_worked_at, created_at), batch_id
             limit 1 for update skip locked)
         returning batch_id, failures",
        worker,
        stale_seconds,
        claims == Claims::Ending,
        LONGEST_PAUSE_SECONDS,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let batch = select(tx, None, Some(BatchId::new(row.batch_id)), None, 1).await?.pop();
    Ok(batch.map(|batch| Claimed { batch, failures: row.failures }))
}

/// A batch's status, as reported to its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The batch's state.
    pub state: BatchState,
    /// True if its completion window has passed.
    pub is_late: bool,
}

/// Renews a worker's lease, and returns the batch's status.
///
/// # Errors
/// [`StoreError::Stale`]: another worker holds it now. [`StoreError::Database`].
pub async fn beat(tx: &mut PgConnection, id: BatchId, worker: Uuid) -> Result<Standing, StoreError> {
    let row = sqlx::query!(
        r#"update batch set heartbeat_at = now() where batch_id = $1 and worker = $2
         returning state, expires_at < now() as "is_late!""#,
        id.uuid(),
        worker,
    )
    .fetch_optional(tx)
    .await?
    .ok_or(StoreError::Stale)?;
    Ok(Standing { state: state(&row.state)?, is_late: row.is_late })
}

/// Returns whether a batch waits whose project has fewer workers than `project` has.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn others_wait(db: &mut PgConnection, project: ProjectId, stale_seconds: f64) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"with served as (
             select project_id, count(*) filter (where worker is not null
                     and heartbeat_at >= now() - make_interval(secs => $2)) as workers,
                 bool_or((worker is null or heartbeat_at < now() - make_interval(secs => $2))
                     and next_try_at <= now()) as waits
             from batch where state in ('validating', 'in_progress', 'finalizing', 'cancelling') group by project_id)
         select exists (select from served where project_id <> $1 and waits
             and workers < (select workers from served where project_id = $1)) as "waits!""#,
        project.uuid(),
        stale_seconds,
    )
    .fetch_one(db)
    .await?)
}

/// Releases a batch before its end, for another worker to claim.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn give_back(tx: &mut PgConnection, id: BatchId, worker: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "update batch set worker = null, last_worked_at = now() where batch_id = $1 and worker = $2",
        id.uuid(),
        worker,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Releases a batch whose models' replicas were not ready in time: they start, or wait for a machine or for a provider
/// that does not answer. That is no failure; the batch is claimed again after a delay, until its completion window has
/// passed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn postpone(tx: &mut PgConnection, id: BatchId, worker: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "update batch set worker = null, last_worked_at = now(), next_try_at = now() + make_interval(secs =>
             case when state = 'cancelling' then $4::float8 else $3::float8 end)
         where batch_id = $1 and worker = $2",
        id.uuid(),
        worker,
        NOT_READY_PAUSE_SECONDS,
        CANCELLED_PAUSE_SECONDS,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Records that processing of a batch failed; once released, it is not claimed before a delay that doubles with each
/// consecutive failure, and is short if the batch was cancelled. Returns the number of consecutive failures; `None`:
/// another worker holds it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn broke_off(tx: &mut PgConnection, id: BatchId, worker: Uuid) -> Result<Option<i32>, StoreError> {
    Ok(sqlx::query_scalar!(
        "update batch set failures = failures + 1,
             next_try_at = now() + make_interval(secs => least(
                 case when state = 'cancelling' then $4::float8 else $3::float8 end, power(2, least(failures, 20))))
         where batch_id = $1 and worker = $2 returning failures",
        id.uuid(),
        worker,
        LONGEST_PAUSE_SECONDS,
        CANCELLED_PAUSE_SECONDS,
    )
    .fetch_optional(tx)
    .await?)
}
