//! Files: upload, list, look, read, preview, delete.

use attune_domain::{
    access::{Role, Scope},
    id::File as FileKind,
};
use attune_store::{
    files::{
        file::{self, Page},
        objects::blob_key,
    },
    version::Thing,
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
        path_id::parse_id,
    },
    policy::Policy,
    wire::{
        file::{Deleted, FileForm, FileView},
        preview::{NewPreview, Preview},
        report::ReportView,
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_file", Scope::FilesWrite, Role::Member),
    Policy::project("list_files", Scope::FilesRead, Role::Viewer),
    Policy::project("retrieve_file", Scope::FilesRead, Role::Viewer).retrieves(Thing::File),
    Policy::project("download_file", Scope::FilesRead, Role::Viewer).names(Thing::File),
    Policy::project("preview_file", Scope::FilesRead, Role::Viewer).names(Thing::File),
    Policy::project("report_file", Scope::FilesRead, Role::Viewer).names(Thing::File),
    Policy::project("delete_file", Scope::FilesWrite, Role::Member).names(Thing::File),
];

/// Upload a file.
///
/// The file may be a dataset for fine-tuning, a batch's requests, or any other data. Every row of a dataset is
/// validated before the response; a file with invalid rows is refused with the lines of the first errors, and nothing
/// is stored.
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
        ("after" = Option<String>, Query, pattern = "^file-[0-9a-f]{32}$", description = "Return files after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 10000, description = "Page size. Defaults to 10000."),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$",
            description = "Sort order by creation time: `desc` (the default) or `asc`."),
        ("purpose" = Option<String>, Query, description = "Return only files with this purpose."),
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

/// Retrieve a file.
#[utoipa::path(get, path = "/v1/files/{file_id}", tag = "Files", operation_id = "retrieve_file",
    params(("file_id" = String, Path)),
    responses((status = 200, body = FileView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<FileView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let file = file::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(file.into()))
}

/// Download a file.
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
    let file = file::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    download::answer(&app.objects, &blob_key(file.sha256), &file.filename, file.bytes).await
}

/// Preview a file's rows as a job would train on them.
///
/// Returns the token IDs, the text of each token, and the loss mask, exactly as a job with these settings trains on
/// them. Documents of continued pre-training are returned one by one, before they are packed. A row that a job would
/// refuse is a 400 that names its line.
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
    let file = file::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    preview::show(&app, holder.project_id, file, asked).await.map(Json)
}

/// Report on a dataset.
///
/// Counts rows, repeated rows, and rows that look like mistakes; with `model` also tokens, and the effect of each
/// policy on rows that are too long; with `validation_file` also the rows of that file that are trained on.
#[utoipa::path(get, path = "/v1/files/{file_id}/report", tag = "Files", operation_id = "report_file",
    params(
        ("file_id" = String, Path),
        ("model" = Option<String>, Query, description = "The base model whose tokenizer counts tokens."),
        ("validation_file" = Option<String>, Query,
            description = "The ID of a validation file, whose rows are searched for in this file."),
        ("max_length" = Option<i64>, Query, minimum = 1, description = "As in a job. Requires `model`."),
        ("train_on_prompt" = Option<bool>, Query, description = "As in a job. Requires `model`."),
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
    let file = file::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    report::make(&app, holder.project_id, file, asked).await.map(Json)
}

/// Delete a file.
///
/// The request is refused while a job that has not ended needs the file.
#[utoipa::path(delete, path = "/v1/files/{file_id}", tag = "Files", operation_id = "delete_file",
    params(("file_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let needed = file::delete(&mut tx, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(&id))?;
    if let Some(job) = needed {
        return Err(ApiError::Conflict(format!("The job {job} needs this file; cancel the job first, or let it end.")));
    }
    tx.commit().await?;
    Ok(Json(Deleted { id, object: "file", deleted: true }))
}
