//! The assembly of an upload's parts into one file: streamed out of the object store and back into it, in the order
//! that the user gives.
//!
//! Memory: one part of the object store's multipart upload.

use std::time::Duration;

use attune_domain::{digest::hex, id::ProjectId};
use attune_process::error_chain::chain;
use attune_store::{
    error::StoreError,
    files::{
        file::File,
        objects::upload_key,
        staging::{Arrived, Incoming, Staged},
        upload::{self, CLAIM_SECONDS, Claim, Part, Upload},
    },
};
use md5::{Digest, Md5};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    app::App,
    error::ApiError,
    files::{
        ingest::{self, Received},
        purpose::Purpose,
    },
};

/// The parts to assemble.
pub struct Join {
    /// The upload.
    pub upload: Upload,
    /// The claim on the upload.
    pub claim: Claim,
    /// The parts, in their order.
    pub parts: Vec<Part>,
    /// The expected MD5 of the whole file, in lower-case hex.
    pub md5: Option<String>,
}

/// Assembles the parts and stores the file. On any failure the upload is pending again.
///
/// # Errors
/// As [`ingest::keep`], and [`ApiError::Invalid`] for `md5`.
pub async fn join(app: App, project: ProjectId, join: Join) -> Result<File, ApiError> {
    let claim = join.claim;
    let renewing = AbortOnDropHandle::new(tokio::spawn(renew(app.clone(), project, claim)));
    let kept = attempt(&app, project, join).await;
    drop(renewing);
    if kept.is_err()
        && let Err(error) = give_back(&app, project, claim).await
    {
        tracing::warn!(upload.id = %claim.upload_id, error = chain(&error),
            "an upload remains claimed until its claim expires");
    }
    kept
}

/// Renews the claim until another process has it, or until this task is dropped.
async fn renew(app: App, project: ProjectId, claim: Claim) {
    loop {
        tokio::time::sleep(Duration::from_secs_f64(CLAIM_SECONDS / 3.0)).await;
        let renewed = async {
            let mut tx = app.beside(project).await?;
            upload::renew(&mut tx, claim).await?;
            Ok::<(), ApiError>(tx.commit().await?)
        };
        match renewed.await {
            Ok(()) => {}
            Err(ApiError::Stale) => return,
            Err(error) => {
                tracing::warn!(upload.id = %claim.upload_id, error = chain(&error), "a claim could not be renewed");
            }
        }
    }
}

async fn give_back(app: &App, project: ProjectId, claim: Claim) -> Result<(), ApiError> {
    let mut tx = app.beside(project).await?;
    upload::release(&mut tx, claim).await?;
    Ok(tx.commit().await?)
}

async fn attempt(app: &App, project: ProjectId, Join { upload, claim, parts, md5 }: Join) -> Result<File, ApiError> {
    let purpose = Purpose::check(&upload.purpose)?;
    let (staged, arrived, found) = stream(app, &parts).await?;
    if let Some(wanted) = md5.filter(|wanted| *wanted != found) {
        staged.discard().await;
        let message = format!("Invalid 'md5': the parts have the checksum {found}, not {wanted}.");
        return Err(ApiError::invalid("md5", message));
    }
    let received = Received {
        staged,
        filename: upload.filename,
        purpose,
        arrived,
        expires_after_seconds: upload.file_expires_after_seconds,
        upload: Some(claim),
    };
    ingest::keep(app, project, received).await
}

/// Streams the parts into one object, and also returns its MD5.
async fn stream(app: &App, parts: &[Part]) -> Result<(Staged, Arrived, String), ApiError> {
    let key = upload_key();
    let mut incoming = Incoming::begin(&app.objects, &key, "file", app.limits.file_bytes);
    let mut hasher = Md5::new();
    for part in parts {
        let mut body = app.objects.get(&part.object_key).await?;
        let failed = |cause| StoreError::object("get", &part.object_key, cause);
        while let Some(piece) = body.try_next().await.map_err(failed)? {
            hasher.update(&piece);
            incoming.write(&piece).await?;
        }
    }
    let (staged, arrived) = incoming.stage(&app.objects, key).await?;
    Ok((staged, arrived, hex(&hasher.finalize())))
}
