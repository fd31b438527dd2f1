//! New replicas.

use attune_domain::{
    event::EventType,
    id::{ProjectId, ReplicaId},
};
use sqlx::PgConnection;

use super::{
    events::tell,
    row::{Replica, ServedBase, get, of_pool},
};
use crate::{
    error::StoreError,
    ids,
    pools::deployment_use,
    queue::{self, EnsureReplica},
};

/// Returns the oldest live replica of a base in its quantization, or requests a new one. Counts as use.
///
/// # Errors [`StoreError::NotFound`]: the deployment has no replicas any more. [`StoreError::Conflict`]: the base does
/// not exist. [`StoreError::Database`], [`StoreError::Queue`].
pub async fn ensure(tx: &mut PgConnection, base: ServedBase) -> Result<Replica, StoreError> {
    ensure_for(tx, base, None).await?.into_iter().next().ok_or(StoreError::NotFound("replica"))
}

/// Returns the live replicas of a base in its quantization, oldest first. Requests a new one if there is none; the
/// project of the request then receives the replica's events. Counts as use: call it for every request.
///
/// # Errors
/// As [`ensure`].
pub async fn ensure_for(
    tx: &mut PgConnection,
    base: ServedBase,
    project: Option<ProjectId>,
) -> Result<Vec<Replica>, StoreError> {
    if let Some(id) = base.deployment_id {
        deployment_use::requested(tx, id).await?;
    }
    touch(tx, base).await?;
    let live = of_pool(tx, base).await?;
    if !live.is_empty() {
        return Ok(live);
    }
    lock(tx, base).await?;
    let live = of_pool(tx, base).await?;
    if !live.is_empty() {
        return Ok(live);
    }
    let id = start(tx, base, project).await?;
    Ok(vec![get(tx, id).await?])
}

/// Requests a new replica of a pool, whatever number it has: of the kind that its deployment sets. The project, if
/// there is one, receives its events.
///
/// # Errors
/// As [`ensure`].
pub async fn start(
    tx: &mut PgConnection,
    base: ServedBase,
    project: Option<ProjectId>,
) -> Result<ReplicaId, StoreError> {
    let id: ReplicaId = ids::id();
    let started = sqlx::query!(
        "insert into replica (replica_id, base_model_id, quantization, deployment_id, state, token, wanted_by, engine,
             device, kv_cache_dtype, draft_model_id)
         select $1, $2, $3, $4, 'wanted', $5, $6, coalesce(d.engine, 'attune'), coalesce(d.device, 'auto'),
             coalesce(d.kv_cache_dtype, 'auto'), d.draft_model_id
         from (select) as one left join deployment as d on d.deployment_id = $4
         where $4::uuid is null or is_deployed($4)",
        id.uuid(),
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
        ids::secret(),
        project.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    if started.rows_affected() == 0 {
        return Err(StoreError::NotFound("deployment"));
    }
    queue::push(tx, &EnsureReplica { replica_id: id }).await?;
    tell(tx, id, EventType::DeploymentRequested).await?;
    Ok(id)
}

/// Records the use of a pool, at most once a second: many requests write the same rows. A row that another transaction
/// has locked is skipped: it is being used, or it ends.
async fn touch(tx: &mut PgConnection, base: ServedBase) -> Result<(), StoreError> {
    sqlx::query!(
        "update replica set last_used_at = now()
         where replica_id in (
             select replica_id from replica
             where base_model_id = $1 and quantization = $2 and deployment_id is not distinct from $3
                 and state in ('wanted', 'launching', 'ready') and last_used_at < now() - interval '1 second'
             for update skip locked)",
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Waits for other transactions that may start the pool's first replica.
async fn lock(tx: &mut PgConnection, base: ServedBase) -> Result<(), StoreError> {
    let pool = format!("pool {} {} {:?}", base.base_model_id.uuid(), base.quantization, base.deployment_id);
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended($1, 0))", pool).execute(tx).await?;
    Ok(())
}

/// Returns wanted replicas whose last message is older than `seconds`; their messages count as pushed now, so the
/// caller must push them in the same transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim_unpushed(tx: &mut PgConnection, seconds: f64) -> Result<Vec<ReplicaId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "update replica set pushed_at = now()
         where state = 'wanted' and pushed_at < now() - make_interval(secs => $1) returning replica_id",
        seconds,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(ReplicaId::new).collect())
}
