//! The objects of exports. Each has a key of its export, so that a digest gives no access to content of other rows, and
//! is recorded before it is uploaded, so that the sweep finds it whatever happens later.

use attune_domain::{digest::Sha256, id::ExportId, run::Blob};
use sqlx::PgConnection;

use crate::{digests::sha256, error::StoreError, files::objects::Objects, sweep_batch::Batch};

/// Returns the key of an export's object.
#[must_use]
pub fn key(export: ExportId, sha256: Sha256) -> String {
    format!("export/{}/{sha256}", export.uuid().simple())
}

/// Records objects that an attempt is about to upload.
///
/// # Errors
/// [`StoreError::Stale`]: the export does not run any more, or another attempt does. [`StoreError::Database`].
pub async fn record(tx: &mut PgConnection, id: ExportId, lease: i64, blobs: &[Blob]) -> Result<(), StoreError> {
    sqlx::query!(
        "select from export where export_id = $1 and attempts = $2 and state = 'running' and deleted_at is null
         for update",
        id.uuid(),
        i32::try_from(lease).unwrap_or(-1),
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::Stale)?;
    for blob in blobs {
        sqlx::query!(
            "insert into export_file (export_id, name, sha256, bytes) values ($1, $2, $3, $4)
             on conflict (export_id, name, sha256) do update set bytes = excluded.bytes",
            id.uuid(),
            blob.name,
            blob.sha256.to_string(),
            blob.bytes.to_i64(),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Makes these files the complete export.
///
/// # Errors
/// [`StoreError::NotGranted`]: one was not recorded with this length. [`StoreError::Database`].
pub(crate) async fn publish(tx: &mut PgConnection, id: ExportId, files: &[Blob]) -> Result<(), StoreError> {
    for file in files {
        let known = sqlx::query!(
            "update export_file set is_published = true
             where export_id = $1 and name = $2 and sha256 = $3 and bytes = $4",
            id.uuid(),
            file.name,
            file.sha256.to_string(),
            file.bytes.to_i64(),
        )
        .execute(&mut *tx)
        .await?;
        if known.rows_affected() == 0 {
            return Err(StoreError::NotGranted(file.name.clone()));
        }
    }
    Ok(())
}

/// Refuses files whose objects are not stored with their lengths.
///
/// # Errors
/// [`StoreError::NotGranted`], [`StoreError::Object`].
pub async fn check_stored(objects: &Objects, id: ExportId, files: &[Blob]) -> Result<(), StoreError> {
    for file in files {
        if objects.head(&key(id, file.sha256)).await? != Some(file.bytes) {
            return Err(StoreError::NotGranted(file.name.clone()));
        }
    }
    Ok(())
}

/// The number of objects deleted in one transaction.
const SWEPT_AT_ONCE: i64 = 25;

/// Deletes the objects of failed and deleted exports, and those that a complete export does not name. An upload URL is
/// valid for an hour, so nothing is deleted within two hours of the end.
///
/// # Errors
/// [`StoreError::Object`], [`StoreError::Database`].
pub(crate) async fn sweep(tx: &mut PgConnection, objects: &Objects) -> Result<Batch, StoreError> {
    let rows = sqlx::query!(
        r#"select f.export_id, f.sha256, exists (select from export_file kept
               where kept.export_id = f.export_id and kept.sha256 = f.sha256 and kept.is_published
                   and e.deleted_at is null and e.state = 'succeeded') as "is_kept!"
           from export_file f join export e using (export_id)
           where coalesce(e.ended_at, e.deleted_at) < now() - interval '2 hours'
               and (e.deleted_at is not null or e.state = 'failed' or not f.is_published)
           limit $1 for update of f skip locked"#,
        SWEPT_AT_ONCE,
    )
    .fetch_all(&mut *tx)
    .await?;
    let has_more = rows.len() as i64 >= SWEPT_AT_ONCE;
    for row in &rows {
        let export = ExportId::new(row.export_id);
        let digest = sha256("export_file.sha256", &row.sha256)?;
        if !row.is_kept {
            objects.delete(&key(export, digest)).await?;
        }
        sqlx::query!(
            "delete from export_file using export e
             where e.export_id = export_file.export_id and export_file.export_id = $1 and sha256 = $2
                 and (e.deleted_at is not null or e.state = 'failed' or not is_published)",
            row.export_id,
            row.sha256,
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(Batch { gone: rows.len() as u64, has_more })
}
