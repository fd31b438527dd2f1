//! What a project has stored: files, uploads that are under way, base models of its own and their blobs, adapters and
//! checkpoints. Each row counts with its own length, also where two name the same content.

use attune_domain::{bytes::Bytes, id::ProjectId};
use sqlx::PgConnection;

use crate::error::StoreError;

/// An amount of storage: what is there, or what may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Bytes.
    pub bytes: Bytes,
    /// Objects in the store, and uploads that have none yet.
    pub objects: u64,
}

/// What the project has stored.
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
           ) stored"#,
        project.uuid(),
    )
    .fetch_one(db)
    .await?;
    Ok(Storage { bytes: Bytes::from_i64(row.bytes), objects: u64::try_from(row.objects).unwrap_or(0) })
}

/// As [`stored`], with what `tx` has written; nobody else is told this of the project until `tx` ends, so that two requests
/// cannot both take the last room.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn stored_by_now(tx: &mut PgConnection, project: ProjectId) -> Result<Storage, StoreError> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('storage ' || $1::uuid::text, 0))", project.uuid())
        .execute(&mut *tx)
        .await?;
    // A statement of its own, so that it sees what others wrote while the lock was waited for.
    stored(tx, project).await
}
