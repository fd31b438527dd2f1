//! The API keys of a project: list, create, retrieve, revoke.

use attune_domain::{
    access::{Role, Scope},
    id::{ApiKey as ApiKeyKind, ProjectId},
};
use attune_store::{
    db::Tx,
    tenancy::{
        api_key::{self, NewKey},
        tenant,
    },
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use crate::{
    app::App,
    auth::caller::Administrator,
    error::{ApiError, ErrorBody},
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::parse_id,
    },
    policy::Policy,
    wire::{
        file::Deleted,
        organization::{ApiKeyView, NewApiKey, NewApiKeyView, scopes},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::organization("list_project_api_keys").names(Thing::Project),
    Policy::organization("create_project_api_key").names(Thing::Project).holds_secret(),
    Policy::organization("retrieve_project_api_key").retrieves(Thing::ApiKey),
    Policy::organization("delete_project_api_key").names(Thing::ApiKey),
];

/// List a project's API keys, newest first.
#[utoipa::path(get, path = "/v1/organization/projects/{project_id}/api_keys", tag = "Organization",
    operation_id = "list_project_api_keys",
    params(
        ("project_id" = String, Path),
        ("after" = Option<String>, Query, pattern = "^key_[0-9a-f]{32}$", description = "Return keys after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<ApiKeyView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<Json<List<ApiKeyView>>, ApiError> {
    let (after, limit) = (query.after::<ApiKeyKind>()?, query.limit(20, 100)?);
    query.done()?;
    let (mut db, project) = open(&app, &administrator, id).await?;
    let keys = api_key::list(&mut db, project, after, limit + 1).await?;
    let views = keys.into_iter().map(ApiKeyView::from).collect();
    Ok(Json(List::cut(views, limit, |key: &ApiKeyView| key.id.clone())))
}

/// Create an API key.
///
/// The `value` in the response is the secret; it is returned only here and cannot be retrieved again.
#[utoipa::path(post, path = "/v1/organization/projects/{project_id}/api_keys", tag = "Organization",
    operation_id = "create_project_api_key", params(("project_id" = String, Path)), request_body = NewApiKey,
    responses((status = 200, body = NewApiKeyView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    Body(new): Body<NewApiKey>,
) -> Result<Json<NewApiKeyView>, ApiError> {
    let scopes = scopes(new.scopes.as_deref())?;
    check(&new, &scopes, &administrator)?;
    let (mut tx, project) = open(&app, &administrator, id).await?;
    let NewApiKey { name, expires_in_seconds, .. } = &new;
    let new =
        NewKey { project_id: project, name: name.trim(), scopes: &scopes, expires_in_seconds: *expires_in_seconds };
    let (key, value) = api_key::insert(&mut tx, &new).await?;
    tx.commit().await?;
    Ok(Json(NewApiKeyView { key: key.into(), value }))
}

fn check(new: &NewApiKey, scopes: &[Scope], administrator: &Administrator) -> Result<(), ApiError> {
    if !(1..=100).contains(&new.name.trim().chars().count()) || new.name.contains('\0') {
        return Err(ApiError::invalid("name", "Invalid 'name': it must have 1 to 100 characters."));
    }
    if new.expires_in_seconds == Some(0) {
        return Err(ApiError::invalid("expires_in_seconds", "Invalid 'expires_in_seconds': it must be 1 or more."));
    }
    if scopes.contains(&Scope::Installation) && !administrator.administers_installation {
        let message = "Only a key with the scope 'installation' can create another one.";
        return Err(ApiError::Forbidden(message.into()));
    }
    if scopes.contains(&Scope::Admin) && administrator.role < Role::Owner {
        let message = "A key with the scope 'admin' has an owner's rights, so only an owner can create one.";
        return Err(ApiError::Forbidden(message.into()));
    }
    Ok(())
}

/// Retrieve an API key.
#[utoipa::path(get, path = "/v1/organization/projects/{project_id}/api_keys/{key_id}", tag = "Organization",
    operation_id = "retrieve_project_api_key", params(("project_id" = String, Path), ("key_id" = String, Path)),
    responses((status = 200, body = ApiKeyView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<ApiKeyView>, ApiError> {
    let (mut db, project) = open(&app, &administrator, id).await?;
    let found = api_key::get(&mut db, project, parse_id(&key)?).await.map_err(ApiError::on_read(key))?;
    Ok(Json(found.into()))
}

/// Revoke an API key.
///
/// The process that responds refuses the key immediately; other processes of the installation do within five seconds.
#[utoipa::path(delete, path = "/v1/organization/projects/{project_id}/api_keys/{key_id}", tag = "Organization",
    operation_id = "delete_project_api_key", params(("project_id" = String, Path), ("key_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    administrator: Administrator,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<Deleted>, ApiError> {
    let (mut tx, project) = open(&app, &administrator, id).await?;
    api_key::revoke(&mut tx, project, parse_id(&key)?).await.map_err(ApiError::on_read(&key))?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(Deleted { id: key, object: "organization.project.api_key.deleted", deleted: true }))
}

/// Begins a transaction of the organization, and returns it with the ID of its project.
///
/// # Errors
/// [`ApiError::NotFound`]: the organization has no such project. [`ApiError::Internal`].
pub async fn open(app: &App, administrator: &Administrator, id: String) -> Result<(Tx, ProjectId), ApiError> {
    let mut db = app.organization(administrator.organization_id).await?;
    let found = tenant::get(&mut db, administrator.organization_id, parse_id(&id)?).await;
    let project = found.map_err(ApiError::on_read(id))?;
    Ok((db, project.project_id))
}
