//! Adapters: what is behind a tuned model's name, to be taken home file by file.

use attune_domain::id::{AdapterVersion as AdapterKind, AdapterVersionId};
use attune_store::{
    adapter::{self, AdapterVersion},
    api_key::Holder,
    objects::blob_key,
};
use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use sqlx::PgConnection;

use crate::{
    app::App,
    caller::Caller,
    content,
    error::{ApiError, ErrorBody},
    page::{List, Params},
    wire::adapter::AdapterView,
};

/// List adapters, newest first.
#[utoipa::path(get, path = "/v1/adapters", tag = "Adapters", operation_id = "list_adapters",
    params(
        ("after" = Option<String>, Query, description = "The list goes on behind the adapter of this id."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 if left out."),
    ),
    responses((status = 200, body = List<AdapterView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<AdapterView>>, ApiError> {
    let (after, limit) = (query.after::<AdapterKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let versions = adapter::list(&mut db, holder.project_id, after, limit + 1).await?;
    let views = versions.into_iter().map(AdapterView::from).collect();
    Ok(Json(List::cut(views, limit, |adapter: &AdapterView| adapter.id.clone())))
}

/// Look at an adapter.
#[utoipa::path(get, path = "/v1/adapters/{adapter}", tag = "Adapters", operation_id = "retrieve_adapter",
    params(("adapter" = String, Path, description = "Its id, or the name of its model.")),
    responses((status = 200, body = AdapterView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<AdapterView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    Ok(Json(find(&mut db, &holder, name).await?.into()))
}

/// Read a file of an adapter.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/files/{file}", tag = "Adapters",
    operation_id = "download_adapter_file",
    params(
        ("adapter" = String, Path, description = "Its id, or the name of its model."),
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
    let version = find(&mut db, &holder, name).await?;
    drop(db);
    let blob = version.files.into_iter().find(|blob| blob.name == file);
    let blob = blob.ok_or(ApiError::NotFound { noun: "file of this adapter", name: file })?;
    content::answer(&app.objects, &blob_key(&blob.sha256), &blob.name, blob.bytes).await
}

async fn find(db: &mut PgConnection, holder: &Holder, name: String) -> Result<AdapterVersion, ApiError> {
    if let Ok(id) = name.parse::<AdapterVersionId>() {
        return adapter::get(db, holder.project_id, id).await.map_err(ApiError::on_read(name));
    }
    let found = adapter::by_model_name(db, holder.project_id, &name).await?;
    found.ok_or(ApiError::NotFound { noun: "adapter", name })
}
