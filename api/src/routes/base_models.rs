//! Base models: the files of a Hugging Face folder are uploaded one by one, then a base model is created from them.

use attune_domain::{
    access::{Role, Scope},
    bytes::Bytes,
    digest::Sha256,
    id::ProjectId,
    license,
    run::Blob,
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    adapters::base_model::{self, BaseModel, INSTALLATION_NAME_KEY, NAME_KEY, NewBaseModel as NewRow, Uses},
    db::{self, Tx},
    error::StoreError,
    files::{blob, objects::blob_key, project_blob, staging::Incoming},
    tenancy::api_key::Holder,
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
    auth::caller::Caller,
    base_import,
    error::{ApiError, ErrorBody},
    files::storage,
    http::{
        json_body::Body,
        pagination::{List, Params},
    },
    policy::Policy,
    wire::{
        base_model::{BaseModelOrigin, BaseModelView, BlobView, NewBaseModel, Owner},
        file::Deleted,
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("find_blob", Scope::ModelsWrite, Role::Admin),
    Policy::project("put_blob", Scope::ModelsWrite, Role::Admin),
    // Base models of the installation additionally require a key with the scope `installation`.
    Policy::project("create_base_model", Scope::ModelsWrite, Role::Admin),
    Policy::project("delete_base_model", Scope::ModelsWrite, Role::Admin),
    Policy::project("list_base_models", Scope::ModelsRead, Role::Viewer),
    Policy::project("retrieve_base_model", Scope::ModelsRead, Role::Viewer),
];

/// Check whether a blob can be used in a base model.
///
/// It can be used if this project uploaded it within the last two hours, or if a base model that the project may use
/// contains it. Blobs of other projects are reported as missing.
#[utoipa::path(head, path = "/v1/base_models/blobs/{sha256}", tag = "Base models", operation_id = "find_blob",
    params(("sha256" = String, Path, description = "SHA-256 of the content, in lower-case hex.")),
    responses(
        (status = 200, description = "The blob exists."),
        (status = 404, description = "The blob does not exist."),
        (status = "4XX", description = "Other errors, without a body."),
    ))]
pub async fn find_blob(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(sha256): Path<String>,
) -> Result<StatusCode, ApiError> {
    let sha256 = read_digest(&sha256)?;
    let there = held(&app, holder.project_id, sha256).await?;
    Ok(if there.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

/// Returns the size of content that the project may use, and keeps the content: the caller is likely to use it soon.
async fn held(app: &App, project: ProjectId, sha256: Sha256) -> Result<Option<Bytes>, ApiError> {
    let mut tx = app.tenant(project).await?;
    let found = project_blob::hold(&mut tx, project, &[sha256]).await?;
    tx.commit().await?;
    match found.get(&sha256) {
        Some(bytes) if app.objects.head(&blob_key(sha256)).await?.is_some() => Ok(Some(*bytes)),
        _ => Ok(None),
    }
}

async fn announce(app: &App, project: ProjectId, sha256: Sha256) -> Result<(), ApiError> {
    let mut tx = app.tenant(project).await?;
    blob::announce(&mut tx, &[sha256]).await?;
    Ok(tx.commit_at(FailPoint::ContentAnnounce).await?)
}

/// Upload a blob.
///
/// The body is the raw content. It is stored only if its SHA-256 digest is the one in the path. A blob that no base
/// model uses is deleted two hours later.
#[utoipa::path(put, path = "/v1/base_models/blobs/{sha256}", tag = "Base models", operation_id = "put_blob",
    params(("sha256" = String, Path, description = "SHA-256 of the content, in lower-case hex.")),
    request_body(content = String, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = BlobView, description = "The blob exists already."),
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
    let sha256 = read_digest(&sha256)?;
    check_length(&headers, app.limits.blob_bytes)?;
    if let Some(bytes) = held(&app, holder.project_id, sha256).await? {
        return Ok((StatusCode::OK, Json(BlobView::new(sha256, bytes))));
    }
    storage::expect(&app, holder.project_id, length(&headers).unwrap_or(0)).await?;
    // The body is read and stored even if the store has the content from another project: only a caller that has the
    // content may use it, and no other caller can find out that it exists.
    let bytes = store_blob(&app, holder.project_id, sha256, body).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    project_blob::record(&mut tx, holder.project_id, sha256, bytes).await?;
    storage::check(&app, &mut tx, holder.project_id, storage::of([bytes])).await?;
    tx.commit_at(FailPoint::BlobRecord).await?;
    Ok((StatusCode::CREATED, Json(BlobView::new(sha256, bytes))))
}

async fn store_blob(app: &App, project: ProjectId, sha256: Sha256, body: HttpBody) -> Result<Bytes, ApiError> {
    let mut incoming = Incoming::begin(&app.objects, &blob_key(sha256), "blob", app.limits.blob_bytes);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.try_next().await.map_err(|_| incomplete())? {
        incoming.write(&piece).await?;
    }
    let arrived = incoming.arrived();
    if arrived.sha256 != sha256 {
        incoming.abort().await;
        let message = format!("The content's SHA-256 is {}, not {sha256}. Nothing was stored.", arrived.sha256);
        return Err(ApiError::Invalid { param: Some("sha256".into()), code: "digest_mismatch", message });
    }
    // Not before the upload: the record would expire before a slow body has arrived.
    announce(app, project, sha256).await?;
    incoming.finish().await?;
    Ok(arrived.bytes)
}

fn incomplete() -> ApiError {
    ApiError::Invalid { param: None, code: "incomplete_body", message: "The request body was incomplete.".into() }
}

fn read_digest(sha256: &str) -> Result<Sha256, ApiError> {
    sha256.parse().map_err(|_| ApiError::invalid("sha256", "A digest is 64 lower-case hex digits."))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn check_length(headers: &HeaderMap, limit: u64) -> Result<(), ApiError> {
    if length(headers).is_some_and(|length| length > limit) {
        Err(ApiError::TooLarge { what: "blob", limit })
    } else {
        Ok(())
    }
}

/// Create a base model.
///
/// This project must have uploaded the files before. `config.json` must be of a supported architecture, and the
/// safetensors headers must have every tensor that it needs, in its shape. Creating the same base model again changes
/// nothing.
#[utoipa::path(post, path = "/v1/base_models", tag = "Base models", operation_id = "create_base_model",
    request_body = NewBaseModel,
    responses(
        (status = 200, body = BaseModelView, description = "The same base model exists already."),
        (status = 201, body = BaseModelView),
        (status = "4XX", body = ErrorBody),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewBaseModel>,
) -> Result<(StatusCode, Json<BaseModelView>), ApiError> {
    let name = new.name;
    let files = base_import::check_list(&name, &new.files)?;
    let owner = owner(&holder, new.owner)?;
    let origin = new.origin.map(BaseModelOrigin::check).transpose()?;
    let license = new.license.as_deref().map(license::check).transpose()?;
    let mut db = app.tenant(holder.project_id).await?;
    if let Some(there) = base_model::of_owner(&mut db, owner, &name).await? {
        return same_again(there, files);
    }
    drop(db); // the content may be large; no connection waits for it
    let architecture = base_import::check_content(&app, holder.project_id, &files).await?;
    let mut tx = owning(&app, &holder, owner).await?;
    let row = NewRow {
        name: &name,
        architecture: &architecture,
        files: &files,
        origin: origin.as_ref(),
        license: license.as_deref(),
    };
    let made = base_model::insert(&mut tx, owner, &row).await;
    let made = made.map_err(|e| if is_taken(&e) { taken(&name) } else { e.into() })?;
    let added = owner.map_or(storage::NOTHING, |_| storage::of_files(&files));
    storage::check(&app, &mut tx, holder.project_id, added).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(BaseModelView::new(made, files))))
}

/// Returns the project that will own a base model; `None` for the installation.
fn owner(holder: &Holder, asked: Option<Owner>) -> Result<Option<ProjectId>, ApiError> {
    match (asked, holder.administers_installation) {
        (Some(Owner::Project), _) | (None, false) => Ok(Some(holder.project_id)),
        (_, true) => Ok(None),
        (Some(Owner::Installation), false) => Err(not_yours()),
    }
}

fn not_yours() -> ApiError {
    let message = "Only keys with the scope 'installation' can create or delete the installation's base models.";
    ApiError::Forbidden(message.into())
}

/// Begins a transaction that may write base models of `owner`.
async fn owning(app: &App, holder: &Holder, owner: Option<ProjectId>) -> Result<Tx, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    if owner.is_none() && holder.administers_installation {
        db::as_installation(&mut tx).await?;
    }
    Ok(tx)
}

fn is_taken(error: &StoreError) -> bool {
    error.on_constraint(NAME_KEY) || error.on_constraint(INSTALLATION_NAME_KEY)
}

fn same_again(there: BaseModel, files: Vec<Blob>) -> Result<(StatusCode, Json<BaseModelView>), ApiError> {
    if there.digest == base_model::digest(&files) {
        Ok((StatusCode::OK, Json(BaseModelView::new(there, files))))
    } else {
        Err(taken(&there.name))
    }
}

fn taken(name: &str) -> ApiError {
    ApiError::NameTaken(format!("There is a base model '{name}' with other files already; choose another name."))
}

/// Delete a base model.
///
/// It must not be used by any job, fine-tuned model or deployment. Its files are deleted, and so is the data that ended
/// jobs have left over it. If the project and the installation have a model of this name, the project's is deleted,
/// unless `owner` is given.
#[utoipa::path(delete, path = "/v1/base_models/{name}", tag = "Base models", operation_id = "delete_base_model",
    params(
        ("name" = String, Path),
        ("owner" = Option<Owner>, Query,
            description = "`project` or `installation`. Defaults to the model that the name refers to."),
    ),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    mut query: Params,
) -> Result<Json<Deleted>, ApiError> {
    let asked = query.take("owner")?.as_deref().map(Owner::read).transpose()?;
    query.done()?;
    let mut tx = owning(&app, &holder, None).await?;
    let project = holder.project_id;
    let found = match asked {
        None => base_model::by_name(&mut tx, project, &name).await?,
        Some(asked) => {
            let owner = (asked == Owner::Project).then_some(project);
            base_model::of_owner(&mut tx, owner, &name).await?
        }
    };
    let base = found.ok_or_else(|| ApiError::NotFound { noun: "base model", name: name.clone() })?;
    if base.project_id.is_none() && !holder.administers_installation {
        return Err(not_yours());
    }
    let deleted = base_model::delete(&mut tx, project, base.base_model_id).await;
    if let Some(uses) = deleted.map_err(ApiError::on_read(&name))? {
        return Err(in_use(&name, &uses));
    }
    tx.commit().await?;
    Ok(Json(Deleted { id: name, object: "base_model", deleted: true }))
}

fn in_use(name: &str, uses: &Uses) -> ApiError {
    let mut users: Vec<String> = uses.jobs.iter().map(|job| format!("the job {job}")).collect();
    users.extend(uses.models.iter().map(|model| format!("the model {model}")));
    users.extend(uses.deployments.iter().map(|deployment| format!("the deployment '{deployment}'")));
    if uses.elsewhere > 0 {
        users.push(format!("{} jobs, models and deployments of other projects", uses.elsewhere));
    }
    let users = users.join(", ");
    ApiError::Conflict(format!(
        "The base model '{name}' is in use: {users}. Cancel the jobs, and delete the models and deployments first."
    ))
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
    for base in base_model::list(&mut db, holder.project_id).await? {
        let files = base_model::files(&mut db, base.base_model_id).await?;
        views.push(BaseModelView::new(base, files));
    }
    Ok(Json(List::whole(views, |base| base.id.clone())))
}

/// Retrieve a base model.
#[utoipa::path(get, path = "/v1/base_models/{name}", tag = "Base models", operation_id = "retrieve_base_model",
    params(("name" = String, Path)),
    responses((status = 200, body = BaseModelView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<BaseModelView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let base = base_model::by_name(&mut db, holder.project_id, &name).await?;
    let base = base.ok_or(ApiError::NotFound { noun: "base model", name })?;
    let files = base_model::files(&mut db, base.base_model_id).await?;
    Ok(Json(BaseModelView::new(base, files)))
}
