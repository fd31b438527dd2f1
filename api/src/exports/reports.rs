//! The uploads and the reports of an export's process.

use attune_domain::{
    export::ExportState,
    run::{Blob, BlobGrant, Reply, Report, RunEvent},
};
use attune_process::failpoint::FailPoint;
use attune_store::exports::{
    export_file,
    export_run::{self, ExportRun},
};

use crate::{app::App, error::ApiError};

/// Records the objects that the process is about to upload, and returns their upload URLs. An object that an earlier
/// request uploaded is not uploaded again.
///
/// # Errors
/// [`ApiError::Stale`], [`ApiError::Internal`].
pub async fn grant(app: &App, export: ExportRun, lease: i64, blobs: &[Blob]) -> Result<Vec<BlobGrant>, ApiError> {
    let mut tx = app.platform().await?;
    export_file::record(&mut tx, export.export_id, lease, blobs).await?;
    tx.commit_at(FailPoint::ExportRecordFiles).await?;
    let mut grants = Vec::with_capacity(blobs.len());
    for blob in blobs {
        let key = export_file::key(export.export_id, blob.sha256);
        let is_stored = app.objects.head(&key).await? == Some(blob.bytes);
        let url = if is_stored { None } else { Some(app.objects.presign_put(&key).await?) };
        grants.push(BlobGrant { sha256: blob.sha256, url });
    }
    Ok(grants)
}

/// Applies the report: all of it, or nothing.
///
/// # Errors
/// [`ApiError::Stale`]; [`ApiError::Invalid`]: files that are not stored. [`ApiError::Internal`].
pub async fn take(app: &App, export: ExportRun, said: &Report) -> Result<Reply, ApiError> {
    let is_current = said.run_lease == export.lease && export.state == ExportState::Running;
    for event in said.events.iter().filter(|_| is_current) {
        if let RunEvent::Exported { files, .. } = event {
            export_file::check_stored(&app.objects, export.export_id, files).await?;
        }
    }
    let mut tx = app.platform().await?;
    let reply = export_run::take(&mut tx, export.export_id, said).await?;
    tx.commit_at(FailPoint::ExportReport).await?;
    Ok(reply)
}
