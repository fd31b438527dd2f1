//! The end of replicas.

use attune_domain::{
    event::EventType,
    id::{NodeId, ReplicaId},
    offer::ReplicaKind,
    text::tenant_text::for_tenant,
};
use sqlx::PgConnection;

use super::{events::tell, row::ServedBase};
use crate::{error::StoreError, runs::node};

/// Ends a replica and releases its node. Returns `false` if it had ended before.
///
/// The error is shown to users of any project who wait for the replica, so paths and addresses are removed from it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end(tx: &mut PgConnection, id: ReplicaId, error: Option<&str>) -> Result<bool, StoreError> {
    let error = error.map(for_tenant);
    let ended = sqlx::query!(
        "update replica set state = 'ended', ended_at = now(), error = $2
         where replica_id = $1 and state <> 'ended' returning node_id",
        id.uuid(),
        error.as_deref(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(ended) = ended else { return Ok(false) };
    if let Some(node_id) = ended.node_id {
        node::release(tx, NodeId::new(node_id)).await?;
    }
    let event = if error.is_some() { EventType::DeploymentFailed } else { EventType::DeploymentStopped };
    tell(tx, id, event).await?;
    Ok(true)
}

/// Ends a ready replica whose pool was not used for `idle_seconds`, unless the pool's minimum needs it. Returns `false`
/// if it was used meanwhile.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end_if_idle(tx: &mut PgConnection, id: ReplicaId, idle_seconds: f64) -> Result<bool, StoreError> {
    let idle = sqlx::query_scalar!(
        "select replica_id from replica where replica_id = $1 and state = 'ready'
             and last_used_at < now() - make_interval(secs => $2)
             and (select count(*) from replica as other where other.base_model_id = replica.base_model_id
                     and other.quantization = replica.quantization
                     and other.deployment_id is not distinct from replica.deployment_id
                     and other.state in ('wanted', 'launching', 'ready'))
                 > deployment_minimum(deployment_id)
         for update",
        id.uuid(),
        idle_seconds,
    )
    .fetch_optional(&mut *tx)
    .await?;
    match idle {
        Some(_) => end(tx, id, None).await,
        None => Ok(false),
    }
}

/// Ends up to `count` replicas of a pool that are not placed yet, newest first. Returns their number.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end_unplaced(tx: &mut PgConnection, base: ServedBase, count: i64) -> Result<usize, StoreError> {
    let wanted = sqlx::query_scalar!(
        "select replica_id from replica where base_model_id = $1 and quantization = $2
             and deployment_id is not distinct from $4 and state = 'wanted'
         order by replica_id desc limit $3 for update",
        base.base_model_id.uuid(),
        base.quantization.name(),
        count,
        base.deployment(),
    )
    .fetch_all(&mut *tx)
    .await?;
    for id in &wanted {
        end(tx, ReplicaId::new(*id), None).await?;
    }
    Ok(wanted.len())
}

/// Ends the replicas of a pool that answer no requests yet: of a deployment that has no replicas any more. Returns
/// their number.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end_starting(tx: &mut PgConnection, base: ServedBase) -> Result<usize, StoreError> {
    let starting = sqlx::query_scalar!(
        "select replica_id from replica where base_model_id = $1 and quantization = $2
             and deployment_id is not distinct from $3 and state in ('wanted', 'launching')
         order by replica_id for update",
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
    )
    .fetch_all(&mut *tx)
    .await?;
    for id in &starting {
        end(tx, ReplicaId::new(*id), None).await?;
    }
    Ok(starting.len())
}

/// Reduces a pool by up to `count` replicas: ends replicas that are not placed yet, and then lets the ready ones with
/// the fewest requests drain, at most `most_ready` of them. Returns the number of both.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn drain(tx: &mut PgConnection, base: ServedBase, count: i64, most_ready: i64) -> Result<usize, StoreError> {
    let unplaced = end_unplaced(tx, base, count).await?;
    let drained = sqlx::query!(
        "update replica set state = 'draining', draining_since = now()
         where replica_id in (
             select replica_id from replica where base_model_id = $1 and quantization = $2
                 and deployment_id is not distinct from $4 and state = 'ready'
             order by active_requests, replica_id desc limit $3 for update)",
        base.base_model_id.uuid(),
        base.quantization.name(),
        count.saturating_sub(unplaced as i64).min(most_ready),
        base.deployment(),
    )
    .execute(tx)
    .await?;
    Ok(unplaced + usize::try_from(drained.rows_affected()).unwrap_or(0))
}

/// Reduces a pool by its replicas of another kind than `kind`, the pool's: ends those that are not placed yet, and lets
/// the ready ones drain. Returns the number of both.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn drain_outdated(tx: &mut PgConnection, base: ServedBase, kind: ReplicaKind) -> Result<usize, StoreError> {
    let wanted = sqlx::query_scalar!(
        "select replica_id from replica where base_model_id = $1 and quantization = $2
             and deployment_id is not distinct from $3 and state = 'wanted'
             and (engine, device, kv_cache_dtype, draft_model_id) is distinct from ($4, $5, $6, $7::uuid)
         for update",
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
        kind.engine.name(),
        kind.device.name(),
        kind.kv_cache_dtype.name(),
        kind.draft.map(|id| id.uuid()),
    )
    .fetch_all(&mut *tx)
    .await?;
    for id in &wanted {
        end(tx, ReplicaId::new(*id), None).await?;
    }
    let drained = sqlx::query!(
        "update replica set state = 'draining', draining_since = now()
         where base_model_id = $1 and quantization = $2 and deployment_id is not distinct from $3 and state = 'ready'
             and (engine, device, kv_cache_dtype, draft_model_id) is distinct from ($4, $5, $6, $7::uuid)",
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
        kind.engine.name(),
        kind.device.name(),
        kind.kv_cache_dtype.name(),
        kind.draft.map(|id| id.uuid()),
    )
    .execute(tx)
    .await?;
    Ok(wanted.len() + usize::try_from(drained.rows_affected()).unwrap_or(0))
}
