//! The adapters that the replicas of a deployment keep in memory, because it pins them.

use attune_domain::{
    id::AdapterVersionId,
    run::Blob,
    serve::{AdapterKey, AdapterRef},
};
use rand::RngExt;
use sqlx::PgConnection;

use crate::{
    error::{StoreError, json},
    files::objects::Objects,
    replica::row::ServedBase,
};

/// The maximum number of adapters that one reply has prefetched; the next replies name the others.
pub(crate) const PREFETCHED_PER_REPLY: usize = 8;

/// The pinned adapters of a pool, and those of them that a replica has to load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pins {
    /// All pinned adapters, oldest first.
    pub pinned: Vec<AdapterKey>,
    /// Some of the pinned adapters that the replica does not have, with new presigned URLs.
    pub prefetch: Vec<AdapterRef>,
}

/// Returns the adapters that the deployment of a pool pins. `resident` is the list of those that the replica has.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`], [`StoreError::Object`].
pub async fn of_pool(
    conn: &mut PgConnection,
    objects: &Objects,
    base: ServedBase,
    resident: &[AdapterKey],
) -> Result<Pins, StoreError> {
    let rows = sqlx::query!(
        "select v.adapter_version_id, v.files
         from adapter_version as v
         where v.base_model_id = $1 and v.quantization = $2 and v.deleted_at is null
             and exists (select from deployment as d
                 join project as p on p.project_id = d.project_id and p.archived_at is null
                 where d.deployment_id = $3 and d.project_id = v.project_id
                     and v.adapter_version_id = any(d.pinned_adapters))
         order by v.adapter_version_id",
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
    )
    .fetch_all(conn)
    .await?;
    let (mut pins, mut missing) = (Pins::default(), Vec::new());
    for row in rows {
        let id = AdapterKey::Version(AdapterVersionId::new(row.adapter_version_id));
        pins.pinned.push(id);
        if !resident.contains(&id) {
            missing.push((id, json("adapter_version.files", row.files)?));
        }
    }
    pins.prefetch = some_of(objects, missing, PREFETCHED_PER_REPLY).await?;
    Ok(pins)
}

/// Returns at most `most` of these adapters with new presigned URLs. Others each time: adapters that cannot be loaded
/// do not keep those after them from it.
pub(crate) async fn some_of(
    objects: &Objects,
    mut missing: Vec<(AdapterKey, Vec<Blob>)>,
    most: usize,
) -> Result<Vec<AdapterRef>, StoreError> {
    if missing.len() > most {
        let first = rand::rng().random_range(0..missing.len());
        missing.rotate_left(first);
        missing.truncate(most);
    }
    let mut adapters = Vec::with_capacity(missing.len());
    for (id, blobs) in missing {
        let mut files = Vec::with_capacity(blobs.len());
        for blob in blobs {
            files.push(objects.remote_file(&blob.name, blob.sha256, blob.bytes).await?);
        }
        adapters.push(AdapterRef { id, files, merge: None });
    }
    Ok(adapters)
}
