//! The task of an export, built from its row when the node requests it, with new presigned URLs.

use attune_domain::{
    bytes::Bytes,
    id::{ExportId, FileId},
    run::{Blob, CONTRACT_VERSION, RemoteFile, task::ExportTask},
};
use sqlx::PgConnection;

use crate::{
    digests,
    error::{StoreError, json},
    exports::export,
    files::{blob, objects::Objects},
    runs::run_spec,
};

/// Returns the task of an export that is being written. The adapter's content is kept until the export has read it.
///
/// # Errors
/// [`StoreError::Stale`]: it is not being written. [`StoreError::NotFound`], [`StoreError::Object`],
/// [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, objects: &Objects, id: ExportId) -> Result<ExportTask, StoreError> {
    let row = sqlx::query!(
        "select attempts, threads, heartbeat_seconds, adapter_files, manifest, predicted_peak, imatrix_file_id
         from export where export_id = $1 and state = 'running' and deleted_at is null",
        id.uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    .ok_or(StoreError::Stale)?;
    let (Some(threads), Some(heartbeat)) = (row.threads, row.heartbeat_seconds) else { return Err(StoreError::Stale) };
    let export = export::load(conn, id).await?;
    let base = run_spec::base(conn, objects, export.base_model_id.uuid()).await?;
    let blobs: Vec<Blob> = json("export.adapter_files", row.adapter_files)?;
    let calibration = match row.imatrix_file_id {
        Some(file) => Some(run_spec::dataset(conn, objects, FileId::new(file)).await?),
        None => None,
    };
    Ok(ExportTask {
        version: CONTRACT_VERSION,
        export_id: id,
        run_lease: i64::from(row.attempts),
        heartbeat_seconds: heartbeat.unsigned_abs().into(),
        base,
        model: export.model_name,
        adapter: remote(objects, &blobs).await?,
        manifest: row.manifest,
        quantization: export.quantization,
        spec: export.spec,
        calibration,
        threads: threads.unsigned_abs(),
        predicted_peak: Bytes::from_i64(row.predicted_peak.unwrap_or(0)),
    })
}

async fn remote(objects: &Objects, blobs: &[Blob]) -> Result<Vec<RemoteFile>, StoreError> {
    let mut files = Vec::with_capacity(blobs.len());
    for blob in blobs {
        files.push(objects.remote_file(&blob.name, blob.sha256, blob.bytes).await?);
    }
    Ok(files)
}

/// The reason why an export cannot be written any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The base model was deleted.
    Base,
    /// The adapter version or the checkpoint was deleted.
    Adapter,
    /// The file that the importance matrix is computed from was deleted.
    Calibration,
}

/// Returns the input of a queued export that was deleted after its request, if any. Keeps the content of the
/// others from being swept while the export reads it.
///
/// # Errors
/// [`StoreError::NotFound`]: the export was deleted. [`StoreError::Object`], [`StoreError::Database`].
pub async fn hold_inputs(tx: &mut PgConnection, id: ExportId) -> Result<Option<Gone>, StoreError> {
    let row = sqlx::query!(
        r#"select e.adapter_files, coalesce(f.rows_sha256, f.sha256) as "calibration?",
             (f.deleted_at is not null) as "is_calibration_gone!", (b.deleted_at is not null) as "is_base_gone!",
             (not exists (select from adapter_version a where a.project_id = e.project_id
                 and a.model_name = e.model_name and a.deleted_at is null)
             and not exists (select from checkpoint c join job j using (job_id)
                 where j.project_id = e.project_id and c.files @> e.adapter_files)) as "is_adapter_gone!"
         from export e join base_model b using (base_model_id) left join file f on f.file_id = e.imatrix_file_id
         where e.export_id = $1 and e.deleted_at is null"#,
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::NotFound("export"))?;
    if row.is_base_gone {
        return Ok(Some(Gone::Base));
    }
    if row.is_calibration_gone {
        return Ok(Some(Gone::Calibration));
    }
    if row.is_adapter_gone {
        return Ok(Some(Gone::Adapter));
    }
    let blobs: Vec<Blob> = json("export.adapter_files", row.adapter_files)?;
    let mut digests: Vec<_> = blobs.iter().map(|blob| blob.sha256).collect();
    if let Some(rows) = row.calibration {
        digests.push(digests::sha256("file.sha256", &rows)?);
    }
    blob::announce(tx, &digests).await?;
    Ok(None)
}
