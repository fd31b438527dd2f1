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

/// Claims a batch without a worker, or whose worker sent no heartbeat for `stale_seconds`: one of the project with the
/// fewest workers, and there the one that has waited longest.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(tx: &mut PgConnection, worker: Uuid, stale_seconds: f64) -> Result<Option<Batch>, StoreError> {
    let id = sqlx::query_scalar!(
        "update batch set worker = $1, heartbeat_at = now() where batch_id = (
             select batch_id from batch b where state in ('validating', 'in_progress', 'finalizing', 'cancelling')
                 and (worker is null or heartbeat_at < now() - make_interval(secs => $2)) and next_try_at <= now()
             order by (select count(*) from batch o where o.project_id = b.project_id and o.worker is not null
                     and o.state in ('validating', 'in_progress', 'finalizing', 'cancelling')
                     and o.heartbeat_at >= now() - make_interval(secs => $2)),
                 coalesce(last_worked_at, created_at), batch_id
             limit 1 for update skip locked)
         returning batch_id",
        worker,
        stale_seconds,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(id) = id else { return Ok(None) };
    Ok(select(tx, None, Some(BatchId::new(id)), None, 1).await?.pop())
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

/// Records that processing of a batch failed; once released, it is not claimed before a delay that doubles with each
/// consecutive failure. Returns the number of consecutive failures; `None`: another worker holds it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn broke_off(tx: &mut PgConnection, id: BatchId, worker: Uuid) -> Result<Option<i32>, StoreError> {
    Ok(sqlx::query_scalar!(
        "update batch set failures = failures + 1,
             next_try_at = now() + make_interval(secs => least($3, power(2, least(failures, 20))))
         where batch_id = $1 and worker = $2 returning failures",
        id.uuid(),
        worker,
        LONGEST_PAUSE_SECONDS,
    )
    .fetch_optional(tx)
    .await?)
}
