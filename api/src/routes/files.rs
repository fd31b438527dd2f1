//! Files: upload, list, look, read, preview, delete.

use attune_domain::id::File as FileKind;
use attune_store::files::{
    file::{self, Page},
    objects::blob_key,
};
use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    files::{
        file_form,
        multipart::Form,
        preview,
        report::{self, Asked},
    },
    http::{
        download,
        json_body::Body,
        pagination::{List, Params},
        path_id::named,
    },
    wire::{
        file::{Deleted, FileForm, FileView},
        preview::{NewPreview, Preview},
        report::ReportView,
    },
};

/// Upload a file.
///
/// A dataset for fine-tuning, a batch's requests, or anything that is to be kept. Every row of a dataset is checked before
/// the answer; a file with a bad row is refused with the lines of its first defects, and nothing of it is kept.
#[utoipa::path(post, path = "/v1/files", tag = "Files", operation_id = "create_file",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 200, body = FileView), (status = "4XX", body = ErrorBody), (status = 507, body = ErrorBody)))]
pub async fn create(State(app): State<App>, Caller(holder): Caller, form: Form) -> Result<Json<FileView>, ApiError> {
    let file = file_form::take(&app, holder.project_id, form).await?;
    Ok(Json(file.into()))
}

/// List files.
#[utoipa::path(get, path = "/v1/files", tag = "Files", operation_id = "list_files",
    params(
        ("after" = Option<String>, Query, pattern = "^file-[0-9a-f]{32}$", description = "The list goes on behind the file of this id."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 10000, description = "10000 if left out."),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$", description = "By birth: `desc`, the default, or `asc`."),
        ("purpose" = Option<String>, Query, description = "Only files for this."),
    ),
    responses((status = 200, body = List<FileView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<FileView>>, ApiError> {
    let (after, limit) = (query.after::<FileKind>()?, query.limit(10_000, 10_000)?);
    let (ascending, purpose) = (query.ascending()?, query.take("purpose")?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let page = Page { after, limit: limit + 1, ascending };
    let files = file::list(&mut db, holder.project_id, purpose.as_deref(), &page).await?;
    let views = files.into_iter().map(FileView::from).collect();
    Ok(Json(List::cut(views, limit, |file: &FileView| file.id.clone())))
}

/// Look at a file.
#[utoipa::path(get, path = "/v1/files/{file_id}", tag = "Files", operation_id = "retrieve_file",
    params(("file_id" = String, Path)),
    responses((status = 200, body = FileView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<FileView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let file = file::get(&mut db, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(file.into()))
}

/// Read a file.
#[utoipa::path(get, path = "/v1/files/{file_id}/content", tag = "Files", operation_id = "download_file",
    params(("file_id" = String, Path)),
    responses(
        (status = 200, content_type = "application/octet-stream", body = String),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn content(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let file = file::get(&mut db, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    download::answer(&app.objects, &blob_key(&file.sha256), &file.filename, file.bytes).await
}

/// Preview a file's rows as they would be trained on.
///
/// Token ids, the text of each token, and which tokens are learnt: exactly what a job with these settings trains on.
/// Documents of continued pre-training are shown one by one, before they are packed. A row that a job would refuse is a
/// 400 that names its line.
#[utoipa::path(post, path = "/v1/files/{file_id}/preview", tag = "Files", operation_id = "preview_file",
    params(("file_id" = String, Path)), request_body = NewPreview,
    responses((status = 200, body = Preview), (status = "4XX", body = ErrorBody)))]
pub async fn preview(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    Body(asked): Body<NewPreview>,
) -> Result<Json<Preview>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let file = file::get(&mut db, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    preview::show(&app, holder.project_id, file, asked).await.map(Json)
}

/// Report on a dataset.
///
/// Rows, repeated rows, and rows that look like mistakes; with `model` also tokens and what each policy would do to rows
/// that are too long; with `validation_file` also which of its rows are trained on.
#[utoipa::path(get, path = "/v1/files/{file_id}/report", tag = "Files", operation_id = "report_file",
    params(
        ("file_id" = String, Path),
        ("model" = Option<String>, Query, description = "A base model: its tokens are counted."),
        ("validation_file" = Option<String>, Query, description = "Rows of it are looked for in this file."),
        ("max_length" = Option<i64>, Query, minimum = 1, description = "As the job's; needs `model`."),
        ("train_on_prompt" = Option<bool>, Query, description = "As the job's; needs `model`."),
    ),
    responses((status = 200, body = ReportView), (status = "4XX", body = ErrorBody)))]
pub async fn report(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    query: Params,
) -> Result<Json<ReportView>, ApiError> {
    let asked = Asked::from_query(query)?;
    let mut db = app.tenant(holder.project_id).await?;
    let file = file::get(&mut db, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    report::make(&app, holder.project_id, file, asked).await.map(Json)
}

/// Delete a file.
///
/// Refused while a job that has not ended needs it.
#[utoipa::path(delete, path = "/v1/files/{file_id}", tag = "Files", operation_id = "delete_file",
    params(("file_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let needed = file::delete(&mut tx, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(&id))?;
    if let Some(job) = needed {
        return Err(ApiError::Conflict(format!("The job {job} needs this file; cancel the job first, or let it end.")));
    }
    tx.commit().await?;
    Ok(Json(Deleted { id, object: "file", deleted: true }))
}
