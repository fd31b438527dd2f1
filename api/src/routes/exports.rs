//! Exports: other forms of an adapter version or a checkpoint, written by a node, for download.

use attune_domain::{
    access::{Role, Scope},
    export::ExportRequest,
    id::{Export as ExportKind, ExportId},
};
use attune_store::{
    exports::{export, export_file},
    jobs::unfinished,
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
    exports::source,
    files::storage,
    http::{
        download,
        json_body::Body,
        pagination::{List, Params},
        path_id::parse_id,
    },
    policy::Policy,
    wire::{
        export::{ExportView, NewExport},
        file::Deleted,
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_export", Scope::ModelsRead, Role::Member).names(Thing::Adapter),
    Policy::project("list_exports", Scope::ModelsRead, Role::Viewer),
    Policy::project("retrieve_export", Scope::ModelsRead, Role::Viewer).retrieves(Thing::Export),
    Policy::project("delete_export", Scope::ModelsWrite, Role::Member).names(Thing::Export),
    Policy::project("download_export_file", Scope::ModelsRead, Role::Viewer).names(Thing::Export),
];

/// Create an export of an adapter version or of a checkpoint.
///
/// The response is returned immediately; a node writes the files. Each export includes a model card, and
/// `export_manifest.json` with the SHA-256 digest of each file and the programs that load it. The files count in the
/// project's storage, and are deleted a week after the export has ended.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/exports", tag = "Adapters", operation_id = "create_export",
    params(("adapter" = String, Path,
        description = "As for `GET /v1/adapters/{adapter}`, or the model name of a checkpoint.")),
    request_body = NewExport,
    responses((status = 200, body = ExportView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    Body(new): Body<NewExport>,
) -> Result<Json<ExportView>, ApiError> {
    let project = holder.project_id;
    let mut tx = app.tenant(project).await?;
    let row = source::new(&mut tx, project, name, &ExportRequest::from(new)).await?;
    unfinished::admit(&mut tx, project, unfinished::Kind::Exports, app.limits.unfinished_exports).await?;
    let made = export::insert(&mut tx, project, &row).await?;
    storage::check(&app, &mut tx, project, storage::NOTHING).await?;
    tx.commit().await?;
    Ok(Json(made.into()))
}

/// List exports, newest first.
#[utoipa::path(get, path = "/v1/exports", tag = "Adapters", operation_id = "list_exports",
    params(
        ("after" = Option<String>, Query, pattern = "^export_[0-9a-f]{32}$",
            description = "Return exports after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<ExportView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<ExportView>>, ApiError> {
    let (after, limit) = (query.after::<ExportKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let exports = export::list(&mut db, holder.project_id, after, limit + 1).await?;
    let views = exports.into_iter().map(ExportView::from).collect();
    Ok(Json(List::cut(views, limit, |export: &ExportView| export.id.clone())))
}

/// Retrieve an export.
#[utoipa::path(get, path = "/v1/exports/{export_id}", tag = "Adapters", operation_id = "retrieve_export",
    params(("export_id" = String, Path)),
    responses((status = 200, body = ExportView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<ExportView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let found = export::get(&mut db, holder.project_id, parse_id(&id)?).await;
    Ok(Json(found.map_err(ApiError::on_read(id))?.into()))
}

/// Delete an export and its files.
///
/// An export that is still being written is stopped.
#[utoipa::path(delete, path = "/v1/exports/{export_id}", tag = "Adapters", operation_id = "delete_export",
    params(("export_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let export: ExportId = parse_id(&id)?;
    export::delete(&mut tx, holder.project_id, export).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(Deleted { id: export.to_string(), object: "adapter.export", deleted: true }))
}

/// Download a file of an export.
#[utoipa::path(get, path = "/v1/exports/{export_id}/files/{file}", tag = "Adapters",
    operation_id = "download_export_file",
    params(
        ("export_id" = String, Path),
        ("file" = String, Path, description = "The file's name."),
    ),
    responses(
        (status = 200, content_type = "application/octet-stream", body = String),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn file(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let found = export::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    drop(db);
    let blob = found.files.into_iter().find(|blob| blob.name == name);
    let blob = blob.ok_or(ApiError::NotFound { noun: "file of this export", name })?;
    download::answer(&app.objects, &export_file::key(found.export_id, blob.sha256), &blob.name, blob.bytes).await
}
