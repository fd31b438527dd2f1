//! Uploads: files that are uploaded in parts.

use std::collections::BTreeMap;

use attune_domain::{
    access::{Role, Scope},
    bytes::Bytes,
    id::{ProjectId, UploadId, UploadPartId},
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    files::{
        file,
        upload::{self, NewUpload as NewRow, Part, Upload, UploadStatus},
    },
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};
use sqlx::PgConnection;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    files::{
        assemble_upload::{self, Join},
        file_form,
        multipart::Form,
        purpose::{ExpiresAfter, Purpose, check_filename},
        storage,
    },
    http::{
        json_body::Body,
        path_id::{parse_id, truncated},
        request_context,
    },
    policy::Policy,
    wire::upload::{Completion, NewUpload, PartForm, PartView, UploadView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_upload", Scope::FilesWrite, Role::Member),
    Policy::project("retrieve_upload", Scope::FilesRead, Role::Viewer).retrieves(Thing::Upload),
    Policy::project("create_upload_part", Scope::FilesWrite, Role::Member).names(Thing::Upload),
    Policy::project("complete_upload", Scope::FilesWrite, Role::Member).names(Thing::Upload),
    Policy::project("cancel_upload", Scope::FilesWrite, Role::Member).names(Thing::Upload),
];

/// The maximum size of a part, in bytes. Source: OpenAI's API reference.
const PART_BYTES: u64 = 64 << 20;

/// The maximum number of parts of an upload.
const MOST_PARTS: usize = 10_000;

/// Create an upload.
///
/// The upload accepts parts for an hour, and becomes a file when it is completed.
#[utoipa::path(post, path = "/v1/uploads", tag = "Uploads", operation_id = "create_upload", request_body = NewUpload,
    responses((status = 200, body = UploadView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewUpload>,
) -> Result<Json<UploadView>, ApiError> {
    let purpose = Purpose::check(&new.purpose)?;
    check_filename("filename", &new.filename)?;
    new.check_mime_type()?;
    let most = app.limits.file_bytes;
    if !(1..=most).contains(&new.bytes) {
        let message = format!("Invalid 'bytes': {} is not a whole number from 1 to {most}.", new.bytes);
        return Err(ApiError::invalid("bytes", message));
    }
    let file_expires_after_seconds =
        new.expires_after.map(ExpiresAfter::check).transpose()?.map(|expires_after| expires_after.seconds);
    let row = NewRow {
        filename: new.filename,
        purpose: purpose.name().to_owned(),
        bytes: Bytes(new.bytes),
        file_expires_after_seconds,
    };
    storage::expect(&app, holder.project_id, new.bytes).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    let upload = upload::insert(&mut tx, holder.project_id, row).await?;
    storage::check(&app, &mut tx, holder.project_id, storage::of([Bytes(0)])).await?;
    tx.commit().await?;
    Ok(Json(UploadView::new(upload, None)))
}

/// Retrieve an upload.
///
/// OpenAI has no such endpoint. A completed upload is returned with its file.
#[utoipa::path(get, path = "/v1/uploads/{upload_id}", tag = "Uploads", operation_id = "retrieve_upload",
    params(("upload_id" = String, Path)),
    responses((status = 200, body = UploadView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<UploadView>, ApiError> {
    let upload_id = parse_id(&id)?;
    let mut tx = app.tenant(holder.project_id).await?;
    view(&mut tx, holder.project_id, upload_id, &id).await
}

async fn view(
    tx: &mut PgConnection,
    project: ProjectId,
    id: UploadId,
    name: &str,
) -> Result<Json<UploadView>, ApiError> {
    let upload = upload::lock(tx, project, id).await.map_err(ApiError::on_read(name))?;
    let file = match upload.file_id {
        Some(file) => Some(file::of_job(tx, project, file).await?.into()),
        None => None,
    };
    Ok(Json(UploadView::new(upload, file)))
}

/// Add a part to an upload.
///
/// A part has at most 64 MiB. Parts may be uploaded in parallel; their order is given when the upload is completed.
#[utoipa::path(post, path = "/v1/uploads/{upload_id}/parts", tag = "Uploads", operation_id = "create_upload_part",
    params(("upload_id" = String, Path)),
    request_body(content = PartForm, content_type = "multipart/form-data"),
    responses((status = 200, body = PartView), (status = "4XX", body = ErrorBody), (status = 507, body = ErrorBody)))]
pub async fn add_part(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    mut form: Form,
) -> Result<Json<PartView>, ApiError> {
    let upload_id = parse_id(&id)?;
    let mut tx = app.tenant(holder.project_id).await?;
    open(&mut tx, &app, (&holder.project_id, upload_id), &id, 0).await?;
    drop(tx);
    let (staged, arrived) = file_form::one_file(&app, &mut form, "data", PART_BYTES).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    open(&mut tx, &app, (&holder.project_id, upload_id), &id, arrived.bytes.0).await?;
    let part = upload::add_part(&mut tx, holder.project_id, upload_id, (staged.key(), arrived.bytes)).await?;
    storage::check(&app, &mut tx, holder.project_id, storage::of([arrived.bytes])).await?;
    // Before the commit, since a disconnected client may not receive its result: a part without its object could never
    // be joined, and an object without a part is swept.
    staged.stay();
    tx.commit_at(FailPoint::UploadAddPart).await?;
    Ok(Json(PartView::new(upload_id, &part)))
}

/// Complete an upload.
///
/// The parts are joined in the order of their IDs, validated like a file that is uploaded whole, and stored as a file.
/// If that fails, the upload stays pending.
#[utoipa::path(post, path = "/v1/uploads/{upload_id}/complete", tag = "Uploads", operation_id = "complete_upload",
    params(("upload_id" = String, Path)), request_body = Completion,
    responses((status = 200, body = UploadView), (status = "4XX", body = ErrorBody), (status = 507, body = ErrorBody)))]
pub async fn complete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    Body(asked): Body<Completion>,
) -> Result<Json<UploadView>, ApiError> {
    let (project, upload_id) = (holder.project_id, parse_id(&id)?);
    let mut tx = app.preparing(project).await?;
    let upload = upload::lock(&mut tx, project, upload_id).await.map_err(ApiError::on_read(&id))?;
    if upload.status != UploadStatus::Completed {
        pending(&upload)?;
        let parts = chosen(&upload, upload::parts(&mut tx, upload_id).await?, &asked.part_ids)?;
        let md5 = asked.md5.as_deref().map(checked_md5).transpose()?;
        let claim = upload::claim(&mut tx, upload_id).await?.ok_or_else(joined_now)?;
        tx.commit_at(FailPoint::UploadClaim).await?;
        // Continues even if the client disconnects.
        let join = assemble_upload::join(app.clone(), project, Join { upload, claim, parts, md5 });
        request_context::spawn(join).await.map_err(ApiError::internal)??;
        tx = app.beside(project).await?;
    }
    view(&mut tx, project, upload_id, &id).await
}

/// Cancel an upload.
///
/// The parts are deleted.
#[utoipa::path(post, path = "/v1/uploads/{upload_id}/cancel", tag = "Uploads", operation_id = "cancel_upload",
    params(("upload_id" = String, Path)),
    responses((status = 200, body = UploadView), (status = "4XX", body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<UploadView>, ApiError> {
    let upload_id = parse_id(&id)?;
    let mut tx = app.tenant(holder.project_id).await?;
    let mut upload = upload::lock(&mut tx, holder.project_id, upload_id).await.map_err(ApiError::on_read(&id))?;
    if upload.status != UploadStatus::Cancelled {
        pending(&upload)?;
        if upload::is_claimed(&mut tx, upload_id).await? {
            return Err(joined_now());
        }
        upload::cancel(&mut tx, upload_id).await?;
        upload.status = UploadStatus::Cancelled;
    }
    tx.commit().await?;
    Ok(Json(UploadView::new(upload, None)))
}

/// The upload takes `more` bytes in another part.
async fn open(
    tx: &mut PgConnection,
    app: &App,
    (project, id): (&ProjectId, UploadId),
    name: &str,
    more: u64,
) -> Result<(), ApiError> {
    let upload = upload::lock(tx, *project, id).await.map_err(ApiError::on_read(name))?;
    pending(&upload)?;
    let parts = upload::parts(tx, id).await?;
    // Parts may be sent again, so a few more than are needed are no mistake.
    let most = upload.bytes.0.saturating_mul(2).min(app.limits.file_bytes.saturating_mul(2));
    let there: u64 = parts.iter().map(|part| part.bytes.0).sum();
    if parts.len() >= MOST_PARTS || there.saturating_add(more) > most {
        let message = format!(
            "The upload has {} parts of {there} bytes already; it was created for {} bytes and accepts at most \
             twice as many, in {MOST_PARTS} parts.",
            parts.len(),
            upload.bytes.0
        );
        return Err(ApiError::invalid("data", message));
    }
    Ok(())
}

fn pending(upload: &Upload) -> Result<(), ApiError> {
    if upload.status == UploadStatus::Pending {
        return Ok(());
    }
    let message = format!("The upload {} is {}; it must be pending.", upload.upload_id, upload.status.name());
    Err(ApiError::invalid("upload_id", message))
}

fn joined_now() -> ApiError {
    ApiError::Conflict("The upload's parts are being joined at the moment. Retry later.".into())
}

/// The parts that the caller names, in that order; together they are as long as was announced.
fn chosen(upload: &Upload, parts: Vec<Part>, ids: &[String]) -> Result<Vec<Part>, ApiError> {
    let mut known: BTreeMap<UploadPartId, Part> = parts.into_iter().map(|part| (part.upload_part_id, part)).collect();
    let mut chosen = Vec::with_capacity(ids.len().min(MOST_PARTS));
    for (i, text) in ids.iter().enumerate() {
        let part = text.parse().ok().and_then(|id| known.remove(&id)).ok_or_else(|| {
            let (param, shown) = (format!("part_ids[{i}]"), truncated(text));
            let message = format!("Invalid '{param}': '{shown}' is not a part of this upload, or is given twice.");
            ApiError::invalid(param, message)
        })?;
        chosen.push(part);
    }
    let bytes: u64 = chosen.iter().map(|part| part.bytes.0).sum();
    if bytes != upload.bytes.0 {
        let message = format!(
            "Invalid 'part_ids': the parts have {bytes} bytes, and the upload was created for {}.",
            upload.bytes.0
        );
        return Err(ApiError::invalid("part_ids", message));
    }
    Ok(chosen)
}

fn checked_md5(given: &str) -> Result<String, ApiError> {
    if given.len() == 32 && given.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(given.to_ascii_lowercase());
    }
    let shown = truncated(given);
    Err(ApiError::invalid("md5", format!("Invalid 'md5': '{shown}' is not 32 hex digits.")))
}
