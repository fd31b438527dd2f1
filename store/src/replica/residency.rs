//! The adapters of replicas: what reports say about them, and the instructions that replies give.

use std::collections::HashSet;

use attune_domain::{
    bytes::Bytes,
    id::{AdapterVersionId, CheckpointId, ReplicaId},
    serve::{AdapterKey, AdapterState, ReplicaReply, ReplicaReport},
};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::row::{Replica, ReplicaState, ServedBase};
use crate::{
    adapters::adapter_prefetch,
    db,
    error::{StoreError, json, to_json},
    files::objects::Objects,
    pools::pins::{self, PREFETCHED_PER_REPLY},
};

/// An adapter version on a replica.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaResidency {
    /// The replica's ID.
    pub replica_id: ReplicaId,
    /// `true` if it gets no new requests.
    pub is_draining: bool,
    /// The time of its last report.
    pub reported_at: DateTime<Utc>,
    /// The state of the adapter in its memory; `None`: it is not resident.
    pub memory: Option<AdapterState>,
    /// The size of the adapter in the disk cache of its node; `None`: it is not cached.
    pub disk: Option<Bytes>,
}

/// Returns the states of a report as they are stored: an object by key.
pub(super) fn stored_states(report: &ReplicaReport) -> Result<Value, StoreError> {
    let mut all = Map::new();
    for state in &report.adapter_states {
        all.insert(state.id.to_string(), to_json("replica.adapter_states", state)?);
    }
    Ok(all.into())
}

/// Returns the disk cache of a report as it is stored: sizes by key.
pub(super) fn stored_disk(report: &ReplicaReport) -> Option<Value> {
    let listed = report.disk_adapters.as_ref()?.iter();
    Some(Value::Object(listed.map(|adapter| (adapter.id.to_string(), adapter.bytes.0.into())).collect()))
}

/// Adds the instructions about adapters to the reply to a report: the versions that users prefetch, with new presigned
/// URLs where the report does not list them in memory, and the reported adapters that were deleted.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Object`].
pub async fn instruct(
    tx: &mut PgConnection,
    objects: &Objects,
    replica: &Replica,
    report: &ReplicaReport,
    mut reply: ReplicaReply,
) -> Result<ReplicaReply, StoreError> {
    if report.address.is_none() || replica.state == ReplicaState::Draining {
        return Ok(reply); // it still loads the base, or ends soon
    }
    let resident: HashSet<AdapterKey> = report.resident_adapters.iter().copied().collect();
    let mut missing = Vec::new();
    for version in adapter_prefetch::of_pool(tx, replica.base).await? {
        let id = AdapterKey::Version(version.adapter_version_id);
        if reply.pinned.contains(&id) {
            continue;
        }
        reply.pinned.push(id);
        if !resident.contains(&id) {
            missing.push((id, version.files));
        }
    }
    let most = PREFETCHED_PER_REPLY.saturating_sub(reply.prefetch.len());
    reply.prefetch.extend(pins::some_of(objects, missing, most).await?);
    if let Some(listed) = &report.disk_adapters {
        reply.forget = deleted(tx, resident.into_iter().chain(listed.iter().map(|adapter| adapter.id))).await?;
    }
    Ok(reply)
}

/// Returns those of the adapters that were deleted. A merge has no row of its own, and stays until it is evicted.
async fn deleted(
    tx: &mut PgConnection,
    reported: impl Iterator<Item = AdapterKey>,
) -> Result<Vec<AdapterKey>, StoreError> {
    let (mut versions, mut checkpoints): (Vec<Uuid>, Vec<Uuid>) = (Vec::new(), Vec::new());
    for key in reported {
        match key {
            AdapterKey::Version(id) => versions.push(id.uuid()),
            AdapterKey::Checkpoint(id) => checkpoints.push(id.uuid()),
            AdapterKey::Merged(_) => {}
        }
    }
    let rows = sqlx::query!(
        r#"select distinct reported.id as "id!", true as "is_version!" from unnest($1::uuid[]) as reported (id)
         where not exists (select from adapter_version where adapter_version_id = reported.id and deleted_at is null)
         union all
         select distinct reported.id, false from unnest($2::uuid[]) as reported (id)
         where not exists (select from checkpoint where checkpoint_id = reported.id)"#,
        &versions,
        &checkpoints,
    )
    .fetch_all(tx)
    .await?;
    let key = |id, is_version| match is_version {
        true => AdapterKey::Version(AdapterVersionId::new(id)),
        false => AdapterKey::Checkpoint(CheckpointId::new(id)),
    };
    Ok(rows.into_iter().map(|row| key(row.id, row.is_version)).collect())
}

/// Returns where the replicas of a pool have an adapter version, oldest replica first. `tx` is a transaction of the
/// version's project.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn of_version(
    tx: &mut PgConnection,
    base: ServedBase,
    id: AdapterVersionId,
) -> Result<Vec<ReplicaResidency>, StoreError> {
    db::as_platform(tx).await?;
    let rows = sqlx::query!(
        r#"select replica_id, state = 'draining' as "is_draining!", heartbeat_at as "reported_at!",
             adapter_states -> $3::text as memory, (disk_adapters -> $3::text)::bigint as disk
         from replica where base_model_id = $1 and quantization = $2 and deployment_id is not distinct from $4
             and state in ('ready', 'draining')
         order by replica_id"#,
        base.base_model_id.uuid(),
        base.quantization.name(),
        id.to_string(),
        base.deployment(),
    )
    .fetch_all(&mut *tx)
    .await?;
    db::as_application(tx).await?;
    rows.into_iter()
        .map(|row| {
            Ok(ReplicaResidency {
                replica_id: ReplicaId::new(row.replica_id),
                is_draining: row.is_draining,
                reported_at: row.reported_at,
                memory: row.memory.map(|state| json("replica.adapter_states", state)).transpose()?,
                disk: row.disk.map(Bytes::from_i64),
            })
        })
        .collect()
}
