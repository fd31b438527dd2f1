//! Nodes: memory reserved with a provider, for one run, replica or export, from before the launch until after the end.

use attune_domain::{
    bytes::Bytes,
    id::{ExportId, NodeId, ReplicaId, RunId},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{error::StoreError, ids};

/// A new reservation.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// The provider's name: `local`.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The reserved memory.
    pub memory: Bytes,
    /// The price of an hour in millionths of a US dollar.
    pub micro_usd_per_hour: u64,
}

/// A reservation that has not been released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's ID.
    pub node_id: NodeId,
    /// The offer's name.
    pub offer: String,
    /// The reserved memory.
    pub memory: Bytes,
    /// The provider's handle of the launched process.
    pub handle: Option<String>,
    /// The run that it is for, if that has not ended.
    pub run_id: Option<RunId>,
    /// The replica that it is for, if that has not ended.
    pub replica_id: Option<ReplicaId>,
    /// The export that it is for, if that is being written.
    pub export_id: Option<ExportId>,
}

impl Node {
    /// Returns whether no active run, replica or export uses the node.
    #[must_use]
    pub const fn is_orphan(&self) -> bool {
        self.run_id.is_none() && self.replica_id.is_none() && self.export_id.is_none()
    }
}

/// Reserves a node. The caller inserts its run or replica in the same transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn reserve(tx: &mut PgConnection, new: &NewNode) -> Result<NodeId, StoreError> {
    let id: NodeId = ids::id();
    sqlx::query!(
        "insert into node (node_id, provider, offer, memory, micro_usd_per_hour) values ($1, $2, $3, $4, $5)",
        id.uuid(),
        new.provider,
        new.offer,
        new.memory.to_i64(),
        i64::try_from(new.micro_usd_per_hour).unwrap_or(i64::MAX),
    )
    .execute(tx)
    .await?;
    Ok(id)
}

/// Stores the providers' handles of launched processes, in one statement.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn launched(conn: &mut PgConnection, launched: &[(NodeId, String)]) -> Result<(), StoreError> {
    let nodes: Vec<Uuid> = launched.iter().map(|(node, _)| node.uuid()).collect();
    let handles: Vec<String> = launched.iter().map(|(_, handle)| handle.clone()).collect();
    sqlx::query!(
        "update node set handle = process.handle
         from unnest($1::uuid[], $2::text[]) as process (node_id, handle) where node.node_id = process.node_id",
        &nodes,
        &handles,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Returns the provider's nodes that are not released, oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn active(conn: &mut PgConnection, provider: &str) -> Result<Vec<Node>, StoreError> {
    let rows = sqlx::query!(
        r#"select node.node_id, offer, memory, handle, run_id as "run_id?", replica_id as "replica_id?",
             export_id as "export_id?"
         from node left join run on run.node_id = node.node_id and run.state <> 'ended'
             left join replica on replica.node_id = node.node_id and replica.state <> 'ended'
             left join export on export.node_id = node.node_id and export.state = 'running'
                 and export.deleted_at is null
         where provider = $1 and released_at is null
         order by node.node_id"#,
        provider,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Node {
            node_id: NodeId::new(row.node_id),
            offer: row.offer,
            memory: Bytes::from_i64(row.memory),
            handle: row.handle,
            run_id: row.run_id.map(RunId::new),
            replica_id: row.replica_id.map(ReplicaId::new),
            export_id: row.export_id.map(ExportId::new),
        })
        .collect())
}

/// Returns the names of the providers of all nodes that are not released.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn active_providers(conn: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let names = sqlx::query_scalar!("select distinct provider from node where released_at is null order by provider")
        .fetch_all(conn)
        .await?;
    Ok(names)
}

/// Releases the node. Idempotent.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn release(conn: &mut PgConnection, id: NodeId) -> Result<(), StoreError> {
    sqlx::query!("update node set released_at = now() where node_id = $1 and released_at is null", id.uuid())
        .execute(conn)
        .await?;
    Ok(())
}
