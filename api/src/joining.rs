//! Parts of an upload become one file: streamed out of the store and into it again, in the order that their user gives.
//!
//! Memory: one part of the store's own uploads.

use attune_domain::id::ProjectId;
use attune_store::{
    base_model::hex,
    error::StoreError,
    file::File,
    objects::upload_key,
    upload::{self, Part, Upload},
};
use md5::{Digest, Md5};

use crate::{
    app::App,
    error::{ApiError, chain},
    file_check::{self, Received},
    file_terms::Purpose,
    incoming::{Arrived, Incoming, Staged},
};

/// What is to be joined.
pub struct Join {
    /// It is claimed.
    pub upload: Upload,
    /// In their order.
    pub parts: Vec<Part>,
    /// What the whole must have, in lower-case hex.
    pub md5: Option<String>,
}

/// Joins the parts and keeps the file. On any failure the upload is pending as before.
///
/// # Errors
/// As [`file_check::keep`], and [`ApiError::Invalid`] for `md5`.
pub async fn join(app: App, project: ProjectId, join: Join) -> Result<File, ApiError> {
    let id = join.upload.upload_id;
    let kept = attempt(&app, project, join).await;
    if kept.is_err()
        && let Err(error) = give_back(&app, project, id).await
    {
        tracing::warn!(upload.id = %id, error = chain(&error), "an upload stays claimed until its claim ends");
    }
    kept
}

async fn give_back(app: &App, project: ProjectId, id: attune_domain::id::UploadId) -> Result<(), ApiError> {
    let mut tx = app.tenant(project).await?;
    upload::release(&mut tx, id).await?;
    Ok(tx.commit().await?)
}

async fn attempt(app: &App, project: ProjectId, Join { upload, parts, md5 }: Join) -> Result<File, ApiError> {
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
        upload: Some(upload.upload_id),
    };
    file_check::keep(app, project, received).await
}

/// One object out of many; its MD5 comes along.
async fn stream(app: &App, parts: &[Part]) -> Result<(Staged, Arrived, String), ApiError> {
    let key = upload_key();
    let mut incoming = Incoming::begin(&app.objects, &key, "file", app.limits.file_bytes);
    let mut hasher = Md5::new();
    for part in parts {
        let mut body = app.objects.get(&part.object_key).await?;
        let failed = |cause| StoreError::Object { action: "get", key: part.object_key.clone(), cause };
        while let Some(piece) = body.try_next().await.map_err(|cause| failed(Box::new(cause)))? {
            hasher.update(&piece);
            incoming.write(&piece).await?;
        }
    }
    let staged = Staged::new(&app.objects, key);
    let arrived = incoming.finish().await?;
    Ok((staged, arrived, hex(&hasher.finalize())))
}
