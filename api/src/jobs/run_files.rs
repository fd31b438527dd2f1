//! The files that a run writes to the object store: the keys that it may write to, and the proof that it has the
//! content that it names.

use attune_domain::{
    digest::Sha256,
    run::{Blob, BlobGrant, RunEvent},
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    error::StoreError,
    files::objects::blob_key,
    runs::{
        run::Run,
        run_blob::{self, Staged},
    },
};
use sha2::Digest;

use crate::{app::App, error::ApiError};

/// Returns for each blob the upload URL, or that the run may name the blob without an upload.
///
/// # Errors
/// [`ApiError::Internal`].
pub async fn grant(app: &App, run: &Run, mut wanted: Vec<Blob>) -> Result<Vec<BlobGrant>, ApiError> {
    wanted.sort_by_key(|blob| blob.sha256);
    wanted.dedup_by_key(|blob| blob.sha256);
    let digests: Vec<Sha256> = wanted.iter().map(|blob| blob.sha256).collect();
    let mut tx = app.platform().await?;
    let own = run_blob::own(&mut tx, run, &wanted).await?;
    let staged = run_blob::staged(&mut tx, run.run_id, &digests).await?;
    tx.commit_at(FailPoint::RunNameBlobs).await?;
    let granted = run_blob::grant(&app.objects, &own, &staged, &wanted).await?;
    let mut tx = app.platform().await?;
    run_blob::record(&mut tx, run.run_id, &granted).await?;
    tx.commit_at(FailPoint::RunGrantBlobs).await?;
    Ok(granted.into_iter().map(|granted| granted.grant).collect())
}

/// Verifies the staged content that these events name. The store already had it from another source, so the run must
/// upload the bytes to prove that it has them.
///
/// # Errors
/// [`ApiError::Internal`]. Content with another digest or size is no error here: the report that names it is refused.
pub async fn prove(app: &App, run: &Run, events: &[RunEvent]) -> Result<(), ApiError> {
    let files = events.iter().filter_map(|event| match event {
        RunEvent::Checkpointed { files, .. } | RunEvent::Published { files, .. } => Some(files),
        _ => None,
    });
    let digests: Vec<Sha256> = files.flatten().map(|file| file.sha256).collect();
    if digests.is_empty() {
        return Ok(());
    }
    let mut tx = app.platform().await?;
    let staged = run_blob::staged(&mut tx, run.run_id, &digests).await?;
    drop(tx); // the content may be large
    for staged in staged {
        if !is_what_it_should_be(app, &staged).await? {
            continue;
        }
        let key = blob_key(staged.sha256);
        if app.objects.head(&key).await?.is_some() {
            app.objects.delete(&staged.key).await?;
        } else {
            app.objects.rename(&staged.key, &key).await?;
        }
        let mut tx = app.platform().await?;
        run_blob::proved(&mut tx, run.run_id, staged.sha256).await?;
        tx.commit_at(FailPoint::RunProveBlob).await?;
    }
    Ok(())
}

async fn is_what_it_should_be(app: &App, staged: &Staged) -> Result<bool, ApiError> {
    let mut body = match app.objects.get(&staged.key).await {
        Err(StoreError::NotFound(_)) => return Ok(false),
        found => found?,
    };
    let (mut hasher, mut bytes) = (sha2::Sha256::new(), 0);
    while let Some(piece) = body.try_next().await.map_err(ApiError::internal)? {
        hasher.update(&piece);
        bytes += piece.len() as u64;
    }
    Ok(bytes == staged.bytes.0 && Sha256::from_digest(hasher.finalize().into()) == staged.sha256)
}
