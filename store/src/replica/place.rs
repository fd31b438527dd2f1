//! The placement of a wanted replica, and the contract of its process.

use attune_domain::{
    bytes::Bytes,
    id::{NodeId, ReplicaId},
    placement::ServedCompute,
    serve::{CONTRACT_VERSION, DEFAULT_DISK_CACHE, DraftSpec, ServeSpec},
};
use sqlx::PgConnection;

use super::row::Replica;
use crate::{
    error::StoreError,
    files::objects::Objects,
    runs::{
        node::{self, NewNode},
        run_spec,
    },
};

/// The placement of a replica.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The node to reserve.
    pub node: NewNode,
    /// Memory for adapters, keys and values, in addition to the base.
    pub memory_budget: Bytes,
    /// The number of CPU threads.
    pub threads: u32,
    /// Seconds between its reports.
    pub heartbeat_seconds: u64,
}

/// Reserves the node of a wanted replica. Returns `None` if it is not wanted any more, or was already placed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn place(tx: &mut PgConnection, id: ReplicaId, placement: &Placement) -> Result<Option<NodeId>, StoreError> {
    let wanted = sqlx::query_scalar!(
        "select replica_id from replica where replica_id = $1 and state = 'wanted' for update",
        id.uuid()
    )
    .fetch_optional(&mut *tx)
    .await?;
    if wanted.is_none() {
        return Ok(None);
    }
    let node_id = node::reserve(tx, &placement.node).await?;
    sqlx::query!(
        "update replica set state = 'launching', node_id = $2, memory_budget = $3, threads = $4,
             heartbeat_seconds = $5, heartbeat_at = now()
         where replica_id = $1",
        id.uuid(),
        node_id.uuid(),
        placement.memory_budget.to_i64(),
        placement.threads as i32,
        placement.heartbeat_seconds as i32,
    )
    .execute(tx)
    .await?;
    Ok(Some(node_id))
}

/// Takes a placed replica back that was not launched: its node is released, and a later message places it again.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn want_again(tx: &mut PgConnection, id: ReplicaId) -> Result<(), StoreError> {
    let node_id = sqlx::query_scalar!(
        r#"update replica set state = 'wanted', node_id = null, pushed_at = now()
         from (select replica_id, node_id from replica where replica_id = $1 for update) as before
         where replica.replica_id = before.replica_id and state = 'launching' and address is null
         returning before.node_id as "node_id?""#,
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(node_id) = node_id.flatten() {
        node::release(tx, NodeId::new(node_id)).await?;
    }
    Ok(())
}

/// Returns the contract of a serving process, with new presigned URLs, and with the defaults of its way of computing,
/// of speculation and of its disk cache, which are settings.
///
/// # Errors
/// [`StoreError::Stale`]: the replica has ended, or was never launched. [`StoreError::Object`],
/// [`StoreError::Database`].
pub async fn spec(conn: &mut PgConnection, objects: &Objects, replica: &Replica) -> Result<ServeSpec, StoreError> {
    let row = sqlx::query!(
        "select memory_budget, threads, heartbeat_seconds from replica where replica_id = $1 and state <> 'ended'",
        replica.replica_id.uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    .ok_or(StoreError::Stale)?;
    let (Some(budget), Some(threads), Some(heartbeat)) = (row.memory_budget, row.threads, row.heartbeat_seconds) else {
        return Err(StoreError::Stale);
    };
    let base = run_spec::base(conn, objects, replica.base.base_model_id.uuid()).await?;
    let draft = match replica.kind.draft {
        Some(id) => {
            let draft = run_spec::base(conn, objects, id.uuid()).await?;
            Some(DraftSpec { base_digest: draft.digest, base: draft.files })
        }
        None => None,
    };
    Ok(ServeSpec {
        version: CONTRACT_VERSION,
        replica_id: replica.replica_id,
        base_digest: base.digest,
        base: base.files,
        quantization: replica.base.quantization,
        compute: ServedCompute::default(),
        speculation: true,
        draft,
        kv_cache_dtype: replica.kind.kv_cache_dtype,
        engine: replica.kind.engine,
        heartbeat_seconds: heartbeat.unsigned_abs().into(),
        memory_budget: Bytes::from_i64(budget),
        disk_cache: DEFAULT_DISK_CACHE,
        threads: threads.unsigned_abs(),
    })
}
