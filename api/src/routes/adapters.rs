//! Adapters: every version of a fine-tuned model's adapter, with downloads by file or as an archive.

use attune_domain::{
    access::{Role, Scope},
    id::{AdapterVersion as AdapterKind, ProjectId},
    manifest,
};
use attune_store::{
    adapters::{
        adapter::{self, AdapterVersion},
        adapter_traffic,
    },
    files::objects::blob_key,
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use sqlx::PgConnection;

use crate::{
    adapter_import::take,
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    files::multipart::Form,
    http::{
        archive, download,
        pagination::{List, Params},
        path_id::truncated,
    },
    policy::Policy,
    wire::{
        adapter::{AdapterForm, AdapterView},
        promotion::metrics::{AdapterMetricsView, VersionMetricsView},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("list_adapters", Scope::ModelsRead, Role::Viewer),
    Policy::project("import_adapter", Scope::ModelsWrite, Role::Member),
    Policy::project("list_adapter_versions", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
    Policy::project("retrieve_adapter", Scope::ModelsRead, Role::Viewer).retrieves(Thing::Adapter),
    Policy::project("retrieve_adapter_manifest", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
    Policy::project("download_adapter_file", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
    Policy::project("export_adapter", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
    Policy::project("retrieve_adapter_metrics", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
];

/// List all versions of all adapters, newest first.
#[utoipa::path(get, path = "/v1/adapters", tag = "Adapters", operation_id = "list_adapters",
    params(
        ("after" = Option<String>, Query, pattern = "^adapter_[0-9a-f]{32}$",
            description = "Return versions after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<AdapterView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<List<AdapterView>>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    page(&mut db, holder.project_id, None, query).await
}

/// Import an adapter that was trained elsewhere.
///
/// The form has a folder in PEFT's format: `adapter_config.json`, `adapter_model.safetensors`, and any other files. It
/// becomes the next version of the adapter `name`, which can be served and trained further. The import is accepted only
/// if the adapter is a LoRA (rsLoRA and DoRA included), has exactly the tensors that its config and its base model
/// require, and all its numbers are finite. A folder that gives its base model another name is accepted only with the
/// base model's digest in `base_digest`. The response lists all errors at once, and a refused import stores nothing.
#[utoipa::path(post, path = "/v1/adapters", tag = "Adapters", operation_id = "import_adapter",
    request_body(content = AdapterForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = AdapterView),
        (status = "4XX", body = ErrorBody),
        (status = 507, body = ErrorBody),
    ))]
pub async fn import(State(app): State<App>, Caller(holder): Caller, form: Form) -> Result<Json<AdapterView>, ApiError> {
    Ok(Json(take::take(&app, holder.project_id, form).await?.into()))
}

/// List the versions of an adapter, newest first.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/versions", tag = "Adapters", operation_id = "list_adapter_versions",
    params(
        ("adapter" = String, Path, description = "The adapter's name, or any name of one of its versions."),
        ("after" = Option<String>, Query, pattern = "^adapter_[0-9a-f]{32}$",
            description = "Return versions after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<AdapterView>), (status = "4XX", body = ErrorBody)))]
pub async fn versions(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    query: Params,
) -> Result<Json<List<AdapterView>>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let name = find(&mut db, holder.project_id, name).await?.adapter;
    page(&mut db, holder.project_id, Some(&name), query).await
}

async fn page(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: Option<&str>,
    mut query: Params,
) -> Result<Json<List<AdapterView>>, ApiError> {
    let (after, limit) = (query.after::<AdapterKind>()?, query.limit(20, 100)?);
    query.done()?;
    let versions = adapter::list(db, project, adapter, after, limit + 1).await?;
    let views = versions.into_iter().map(AdapterView::from).collect();
    Ok(Json(List::cut(views, limit, |adapter: &AdapterView| adapter.id.clone())))
}

/// Retrieve a version of an adapter.
#[utoipa::path(get, path = "/v1/adapters/{adapter}", tag = "Adapters", operation_id = "retrieve_adapter",
    params(("adapter" = String, Path,
        description = "The version's ID or model name, `name@alias`, `name@number`, or `name` for the newest.")),
    responses((status = 200, body = AdapterView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<AdapterView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    Ok(Json(find(&mut db, holder.project_id, name).await?.into()))
}

/// Retrieve the manifest of an adapter version.
///
/// It records the data, the base model, the settings, the seed, the code, the node, the metrics, and the digest of each
/// file.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/manifest", tag = "Adapters",
    operation_id = "retrieve_adapter_manifest",
    params(("adapter" = String, Path, description = "As for `GET /v1/adapters/{adapter}`.")),
    responses(
        (status = 200, content_type = "application/json", body = Object),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn manifest(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let version = find(&mut db, holder.project_id, name).await?;
    let text = version.manifest.ok_or_else(|| ApiError::NotFound {
        noun: "manifest",
        name: format!("{}@{}", version.adapter, version.version),
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Download a file of a version.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/files/{file}", tag = "Adapters",
    operation_id = "download_adapter_file",
    params(
        ("adapter" = String, Path, description = "As for `GET /v1/adapters/{adapter}`."),
        ("file" = String, Path, description = "The file's name in the folder."),
    ),
    responses(
        (status = 200, content_type = "application/octet-stream", body = String),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn file(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, file)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let version = find(&mut db, holder.project_id, name).await?;
    drop(db);
    if let (manifest::FILE, Some(text)) = (file.as_str(), version.manifest) {
        return download::small(manifest::FILE, text);
    }
    let blob = version.files.into_iter().find(|blob| blob.name == file);
    let blob = blob.ok_or(ApiError::NotFound { noun: "file of this adapter", name: file })?;
    download::answer(&app.objects, &blob_key(blob.sha256), &blob.name, blob.bytes).await
}

/// Export an adapter version as a tar archive.
///
/// The folder in the archive is named `<name>-<version>`, and PEFT loads it as it is. The same version always gives the
/// same archive.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/export", tag = "Adapters", operation_id = "export_adapter",
    params(("adapter" = String, Path, description = "As for `GET /v1/adapters/{adapter}`.")),
    responses(
        (status = 200, content_type = "application/x-tar", body = String),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn export(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let version = find(&mut db, holder.project_id, name).await?;
    drop(db);
    archive::answer(&app.objects, version)
}

/// Retrieve the traffic of an adapter's versions in the last hour or day.
///
/// Times are quantiles, each off by less than 19 %. Requests count a few seconds after they have ended.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/metrics", tag = "Adapters",
    operation_id = "retrieve_adapter_metrics",
    params(
        ("adapter" = String, Path, description = "The adapter's name, or any name of one of its versions."),
        ("window" = Option<String>, Query, pattern = "^(hour|day)$", description = "`hour`, the default, or `day`."),
    ),
    responses((status = 200, body = AdapterMetricsView), (status = "4XX", body = ErrorBody)))]
pub async fn metrics(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    mut query: Params,
) -> Result<Json<AdapterMetricsView>, ApiError> {
    let (window, minutes) = match query.take("window")?.as_deref() {
        None | Some("hour") => ("hour", 60),
        Some("day") => ("day", 24 * 60),
        Some(other) => {
            let message = format!("Invalid 'window': '{}'. Use hour or day.", truncated(other));
            return Err(ApiError::invalid("window", message));
        }
    };
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let adapter = find(&mut db, holder.project_id, name).await?.adapter;
    let traffic = adapter_traffic::of_adapter(&mut db, holder.project_id, &adapter, minutes).await?;
    let data = traffic.into_iter().map(VersionMetricsView::from).collect();
    Ok(Json(AdapterMetricsView { object: "adapter.metrics", adapter, window, data }))
}

/// Returns the project's version with this name.
///
/// # Errors
/// [`ApiError::NotFound`].
pub async fn find(db: &mut PgConnection, project: ProjectId, name: String) -> Result<AdapterVersion, ApiError> {
    adapter::find(db, project, &name).await.map_err(ApiError::on_read(name))
}
