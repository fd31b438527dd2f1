//! Replicas that tests place and let report, without processes.

use attune_domain::{bytes::Bytes, id::ReplicaId, serve::ReplicaReport};
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    replica::{self, Placement},
    runs::node::NewNode,
};

/// Returns a node at the provider `local`, at this price.
#[must_use]
pub fn node(micro_usd_per_hour: u64) -> NewNode {
    NewNode { provider: "local".into(), offer: "this machine".into(), memory: Bytes::mib(900), micro_usd_per_hour }
}

/// Returns a replica's placement on a [`node`] at this price.
#[must_use]
pub fn placement(micro_usd_per_hour: u64) -> Placement {
    let node = node(micro_usd_per_hour);
    Placement { node, memory_budget: Bytes::mib(128), threads: 2, heartbeat_seconds: 10 }
}

/// Places a wanted replica on a [`node`] at this price, and lets it report that it is ready at this address.
///
/// # Errors
/// [`StoreError::Stale`]: it is not wanted. [`StoreError::Database`].
pub async fn ready(
    tx: &mut PgConnection,
    id: ReplicaId,
    address: &str,
    micro_usd_per_hour: u64,
) -> Result<(), StoreError> {
    replica::place(tx, id, &placement(micro_usd_per_hour)).await?.ok_or(StoreError::Stale)?;
    let report = ReplicaReport { address: Some(address.into()), ..ReplicaReport::default() };
    replica::take_report(tx, id, &report).await?;
    Ok(())
}
