//! Base models: bring the files of a Hugging Face folder one by one, then name them together.

use attune_domain::{bytes::Bytes, id::ProjectId, run::Blob};
use attune_store::{
    base_model::{self, NAME_KEY},
    blob,
    objects::blob_key,
    project_blob,
};
use axum::{
    Json,
    body::Body as HttpBody,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
};
use futures::TryStreamExt;

use crate::{
    app::App,
    base_import,
    body::Body,
    caller::Caller,
    error::{ApiError, ErrorBody},
    incoming::{Incoming, is_sha256},
    page::{List, Params},
    wire::base_model::{BaseModelView, BlobView, NewBaseModel},
};

/// Check whether a blob can be named.
///
/// It can be named if this project has put it within the last two hours, or if a base model that the project may use has
/// it. What another project has put is not there.
#[utoipa::path(head, path = "/v1/base_models/blobs/{sha256}", tag = "Base models", operation_id = "find_blob",
    params(("sha256" = String, Path, description = "SHA-256 of the content, in lower-case hex.")),
    responses((status = 200, description = "It is there."), (status = 404, description = "It is not."),
        (status = "4XX", description = "As everywhere, without a body.")))]
pub async fn find_blob(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(sha256): Path<String>,
) -> Result<StatusCode, ApiError> {
    check_digest(&sha256)?;
    let there = held(&app, holder.project_id, &sha256).await?;
    Ok(if there.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

/// The length of content that the project may name; whoever is told that it is there will name it soon.
async fn held(app: &App, project: ProjectId, sha256: &str) -> Result<Option<Bytes>, ApiError> {
    let mut tx = app.tenant(project).await?;
    let found = project_blob::hold(&mut tx, project, &[sha256.to_owned()]).await?;
    tx.commit().await?;
    match found.get(sha256) {
        Some(bytes) if app.objects.head(&blob_key(sha256)).await?.is_some() => Ok(Some(*bytes)),
        _ => Ok(None),
    }
}

async fn announce(app: &App, project: ProjectId, sha256: &str) -> Result<(), ApiError> {
    let mut tx = app.tenant(project).await?;
    blob::announce(&mut tx, &[sha256.to_owned()]).await?;
    Ok(tx.commit().await?)
}

/// Put a blob.
///
/// The body is the content, raw. It is kept only if its SHA-256 is the one in the path. A blob that no base model
/// names is swept two hours later.
#[utoipa::path(put, path = "/v1/base_models/blobs/{sha256}", tag = "Base models", operation_id = "put_blob",
    params(("sha256" = String, Path, description = "SHA-256 of the content, in lower-case hex.")),
    request_body(content = String, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = BlobView, description = "It was there already."),
        (status = 201, body = BlobView),
        (status = "4XX", body = ErrorBody),
        (status = 507, body = ErrorBody),
    ))]
pub async fn put_blob(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(sha256): Path<String>,
    headers: HeaderMap,
    body: HttpBody,
) -> Result<(StatusCode, Json<BlobView>), ApiError> {
    check_digest(&sha256)?;
    check_length(&headers, app.limits.blob_bytes)?;
    if let Some(bytes) = held(&app, holder.project_id, &sha256).await? {
        return Ok((StatusCode::OK, Json(BlobView { object: "blob", sha256, bytes: bytes.0 })));
    }
    // It is read whole and stored also when the store has it from elsewhere: only who has the content may name it, and
    // nobody else learns that it is there.
    let bytes = store_blob(&app, holder.project_id, &sha256, body).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    project_blob::record(&mut tx, holder.project_id, &sha256, Bytes(bytes)).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(BlobView { object: "blob", sha256, bytes })))
}

async fn store_blob(app: &App, project: ProjectId, sha256: &str, body: HttpBody) -> Result<u64, ApiError> {
    let mut incoming = Incoming::begin(&app.objects, &blob_key(sha256), "blob", app.limits.blob_bytes);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.try_next().await.map_err(|_| incomplete())? {
        incoming.write(&piece).await?;
    }
    let arrived = incoming.arrived();
    if arrived.sha256 != sha256 {
        incoming.abort().await;
        let message = format!("The content's SHA-256 is {}, not {sha256}; nothing was kept.", arrived.sha256);
        return Err(ApiError::Invalid { param: Some("sha256".into()), code: "digest_mismatch", message });
    }
    // Only now: a note of what may take hours to come would be over before it has come.
    announce(app, project, sha256).await?;
    incoming.finish().await?;
    Ok(arrived.bytes.0)
}

fn incomplete() -> ApiError {
    ApiError::Invalid { param: None, code: "incomplete_body", message: "The body did not come whole.".into() }
}

fn check_digest(sha256: &str) -> Result<(), ApiError> {
    if is_sha256(sha256) { Ok(()) } else { Err(ApiError::invalid("sha256", "A digest is 64 lower-case hex digits.")) }
}

fn check_length(headers: &HeaderMap, limit: u64) -> Result<(), ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) { Err(ApiError::TooLarge { what: "blob", limit }) } else { Ok(()) }
}

/// Make a base model.
///
/// Its files must have been brought before. `config.json` must be of a supported architecture, and the headers of the
/// safetensors must have every tensor that it needs, in its shape. To make the same one again changes nothing.
#[utoipa::path(post, path = "/v1/base_models", tag = "Base models", operation_id = "create_base_model",
    request_body = NewBaseModel,
    responses(
        (status = 200, body = BaseModelView, description = "The very same was there already."),
        (status = 201, body = BaseModelView),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewBaseModel>,
) -> Result<(StatusCode, Json<BaseModelView>), ApiError> {
    let (name, files) = (new.name, new.files.into_iter().map(Blob::from).collect::<Vec<_>>());
    base_import::check_list(&name, &files)?;
    let mut db = app.tenant(holder.project_id).await?;
    if let Some(there) = base_model::by_name(&mut db, &name).await? {
        return same_again(there, files);
    }
    drop(db); // the content may be large; no connection waits for it
    let architecture = base_import::check_content(&app, holder.project_id, &files).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    let made = base_model::insert(&mut tx, &name, &architecture, &files).await;
    let made = made.map_err(|e| if e.on_constraint(NAME_KEY) { taken(&name) } else { e.into() })?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(BaseModelView::new(made, files))))
}

fn same_again(there: base_model::BaseModel, files: Vec<Blob>) -> Result<(StatusCode, Json<BaseModelView>), ApiError> {
    if there.digest == base_model::digest(&files) {
        Ok((StatusCode::OK, Json(BaseModelView::new(there, files))))
    } else {
        Err(taken(&there.name))
    }
}

fn taken(name: &str) -> ApiError {
    ApiError::NameTaken(format!("There is a base model '{name}' with other files already; choose another name."))
}

/// List base models.
#[utoipa::path(get, path = "/v1/base_models", tag = "Base models", operation_id = "list_base_models",
    responses((status = 200, body = List<BaseModelView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<List<BaseModelView>>, ApiError> {
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let mut views = Vec::new();
    for base in base_model::list(&mut db).await? {
        let files = base_model::files(&mut db, base.base_model_id).await?;
        views.push(BaseModelView::new(base, files));
    }
    Ok(Json(List::whole(views, |base| base.id.clone())))
}

/// Look at a base model.
#[utoipa::path(get, path = "/v1/base_models/{name}", tag = "Base models", operation_id = "retrieve_base_model",
    params(("name" = String, Path)),
    responses((status = 200, body = BaseModelView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<BaseModelView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let base = base_model::by_name(&mut db, &name).await?;
    let base = base.ok_or(ApiError::NotFound { noun: "base model", name })?;
    let files = base_model::files(&mut db, base.base_model_id).await?;
    Ok(Json(BaseModelView::new(base, files)))
}
