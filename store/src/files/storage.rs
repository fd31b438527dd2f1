//! A project's storage usage: files, uploads in progress, its own base models and their blobs, adapters, checkpoints
//! and exports. Each row counts with its full length, even if two name the same content.

use attune_domain::{bytes::Bytes, id::ProjectId};
use sqlx::PgConnection;

use crate::{error::StoreError, tenancy::project_queue};

/// An amount of storage, used or allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// The total length.
    pub bytes: Bytes,
    /// The number of objects in the store, and of uploads that have none yet.
    pub objects: u64,
}

/// Returns the project's storage quota, within that of the installation for each project.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn quota(db: &mut PgConnection, project: ProjectId, installation: Storage) -> Result<Storage, StoreError> {
    let own = project_queue::get(db, project).await?.max_stored_bytes;
    Ok(Storage { bytes: own.map_or(installation.bytes, |own| own.min(installation.bytes)), ..installation })
}

/// Returns the project's storage usage.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn stored(db: &mut PgConnection, project: ProjectId) -> Result<Storage, StoreError> {
    let row = sqlx::query!(
        r#"select coalesce(sum(bytes), 0)::bigint as "bytes!", coalesce(sum(objects), 0)::bigint as "objects!" from (
               select bytes + coalesce(rows_bytes, 0) as bytes, 1 + (rows_sha256 is not null)::int as objects
                   from file where project_id = $1 and deleted_at is null
               union all select 0, 1 from upload where project_id = $1 and status = 'pending'
               union all select p.bytes, 1 from upload_part p join upload u using (upload_id)
                   where u.project_id = $1 and u.status = 'pending'
               union all select p.bytes, 1 from project_blob p where p.project_id = $1 and p.expires_at > now()
                   and not exists (select from base_model_file f join base_model b using (base_model_id)
                       where f.sha256 = p.sha256 and b.project_id = $1 and b.deleted_at is null)
               union all select f.bytes, 1 from base_model_file f join base_model b using (base_model_id)
                   where b.project_id = $1 and b.deleted_at is null
               union all select bytes, jsonb_array_length(files) from adapter_version
                   where project_id = $1 and deleted_at is null
               union all select c.bytes, jsonb_array_length(c.files) from checkpoint c join job using (job_id)
                   where job.project_id = $1
               union all select f.bytes, 1 from export_file f join export e using (export_id)
                   where e.project_id = $1 and e.deleted_at is null and e.state <> 'failed'
           ) stored"#,
        project.uuid(),
    )
    .fetch_one(db)
    .await?;
    Ok(Storage { bytes: Bytes::from_i64(row.bytes), objects: u64::try_from(row.objects).unwrap_or(0) })
}

/// Returns the storage usage including what `tx` has written; other calls for the project wait until `tx` ends, so that
/// two requests cannot both use the last of the quota.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn stored_by_now(tx: &mut PgConnection, project: ProjectId) -> Result<Storage, StoreError> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('storage ' || $1::uuid::text, 0))", project.uuid())
        .execute(&mut *tx)
        .await?;
    // A separate statement, so that it sees what other transactions wrote while this one waited for the lock.
    stored(tx, project).await
}
