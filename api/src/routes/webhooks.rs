//! Webhook endpoints: create, list, retrieve, update, delete, rotate the secret, test. The scheduler sends the events.

use attune_domain::{
    access::{Role, Scope},
    id::{ProjectId, WebhookEndpoint as EndpointKind},
};
use attune_store::{
    version::Thing,
    webhooks::{
        webhook_delivery,
        webhook_endpoint::{self, MOST_PER_PROJECT, WebhookEndpoint},
    },
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
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::parse_id,
    },
    policy::Policy,
    wire::{
        file::Deleted,
        webhook::{
            NewWebhookEndpoint, SecretRotation, WebhookDeliveryView, WebhookEndpointChange, WebhookEndpointView,
        },
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_webhook_endpoint", Scope::Webhooks, Role::Member).holds_secret(),
    Policy::project("list_webhook_endpoints", Scope::Webhooks, Role::Viewer),
    Policy::project("retrieve_webhook_endpoint", Scope::Webhooks, Role::Viewer).retrieves(Thing::WebhookEndpoint),
    Policy::project("update_webhook_endpoint", Scope::Webhooks, Role::Member).names(Thing::WebhookEndpoint),
    Policy::project("delete_webhook_endpoint", Scope::Webhooks, Role::Member).names(Thing::WebhookEndpoint),
    Policy::project("rotate_webhook_secret", Scope::Webhooks, Role::Member)
        .names(Thing::WebhookEndpoint)
        .holds_secret(),
    Policy::project("test_webhook_endpoint", Scope::Webhooks, Role::Member).names(Thing::WebhookEndpoint),
];

/// Create a webhook endpoint.
///
/// The response contains the secret that receivers verify signatures with; it is returned only here. A project may have
/// 50 endpoints.
#[utoipa::path(post, path = "/v1/webhook_endpoints", tag = "Webhooks", operation_id = "create_webhook_endpoint",
    request_body = NewWebhookEndpoint,
    responses((status = 200, body = WebhookEndpointView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewWebhookEndpoint>,
) -> Result<Json<WebhookEndpointView>, ApiError> {
    let url = app.webhooks.url(&new.url)?;
    let new = new.check(url)?;
    let mut tx = app.tenant(holder.project_id).await?;
    let made = webhook_endpoint::insert(&mut tx, app.webhooks.key()?, holder.project_id, &new).await?;
    let (endpoint, secret) = made.ok_or_else(|| {
        ApiError::Conflict(format!("The project has {MOST_PER_PROJECT} webhook endpoints, the most that are allowed."))
    })?;
    tx.commit().await?;
    Ok(Json(WebhookEndpointView::with_secret(endpoint, &secret)))
}

/// List webhook endpoints, newest first.
#[utoipa::path(get, path = "/v1/webhook_endpoints", tag = "Webhooks", operation_id = "list_webhook_endpoints",
    params(
        ("after" = Option<String>, Query, pattern = "^we_[0-9a-f]{32}$",
            description = "Return endpoints after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<WebhookEndpointView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<WebhookEndpointView>>, ApiError> {
    let (after, limit) = (query.after::<EndpointKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let endpoints = webhook_endpoint::list(&mut db, holder.project_id, after, limit + 1).await?;
    let views = endpoints.into_iter().map(WebhookEndpointView::from).collect();
    Ok(Json(List::cut(views, limit, |endpoint: &WebhookEndpointView| endpoint.id.clone())))
}

/// Retrieve a webhook endpoint.
#[utoipa::path(get, path = "/v1/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "retrieve_webhook_endpoint", params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = WebhookEndpointView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<WebhookEndpointView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    Ok(Json(find(&mut db, holder.project_id, &id).await?.into()))
}

/// Update a webhook endpoint: its URL, event types, description or status.
///
/// Omitted fields are not changed. An endpoint that was disabled because it responded with 410 can be enabled again.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "update_webhook_endpoint", request_body = WebhookEndpointChange,
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = WebhookEndpointView), (status = "4XX", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    Body(change): Body<WebhookEndpointChange>,
) -> Result<Json<WebhookEndpointView>, ApiError> {
    let url = change.url.as_deref().map(|url| app.webhooks.url(url)).transpose()?;
    let change = change.check(url)?;
    let mut tx = app.tenant(holder.project_id).await?;
    let endpoint = webhook_endpoint::update(&mut tx, holder.project_id, parse_id(&id)?, &change)
        .await
        .map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(endpoint.into()))
}

/// Delete a webhook endpoint and its deliveries.
#[utoipa::path(delete, path = "/v1/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "delete_webhook_endpoint", params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let endpoint = parse_id(&id)?;
    webhook_endpoint::delete(&mut tx, holder.project_id, endpoint).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(Deleted { id: endpoint.to_string(), object: "webhook_endpoint", deleted: true }))
}

/// Rotate a webhook endpoint's secret.
///
/// The response contains the new secret, which is returned only here. For `overlap_seconds`, each delivery is signed
/// with both secrets, so that receivers have time to switch.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", tag = "Webhooks",
    operation_id = "rotate_webhook_secret", request_body = SecretRotation,
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = WebhookEndpointView), (status = "4XX", body = ErrorBody)))]
pub async fn rotate_secret(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    Body(rotation): Body<SecretRotation>,
) -> Result<Json<WebhookEndpointView>, ApiError> {
    let overlap = rotation.seconds()?;
    let mut tx = app.tenant(holder.project_id).await?;
    let of = (holder.project_id, parse_id(&id)?);
    let (endpoint, secret) =
        webhook_endpoint::rotate(&mut tx, app.webhooks.key()?, of, overlap).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(WebhookEndpointView::with_secret(endpoint, &secret)))
}

/// Send a test event to a webhook endpoint.
///
/// The type of the event is `webhook_endpoint.test`. The response is the delivery; retrieve it again to check the
/// outcome.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/test", tag = "Webhooks",
    operation_id = "test_webhook_endpoint", params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = WebhookDeliveryView), (status = "4XX", body = ErrorBody)))]
pub async fn test(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<WebhookDeliveryView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let endpoint = enabled(find(&mut tx, holder.project_id, &id).await?)?;
    let delivery = webhook_delivery::test(&mut tx, holder.project_id, endpoint.webhook_endpoint_id).await?;
    tx.commit().await?;
    Ok(Json(delivery.into()))
}

/// Returns the project's endpoint with this ID.
///
/// # Errors
/// [`ApiError::NotFound`].
pub(super) async fn find(db: &mut PgConnection, project: ProjectId, id: &str) -> Result<WebhookEndpoint, ApiError> {
    webhook_endpoint::get(db, project, parse_id(id)?).await.map_err(ApiError::on_read(id))
}

/// Returns the endpoint if it is enabled.
///
/// # Errors
/// [`ApiError::Conflict`]: it is disabled.
pub(super) fn enabled(endpoint: WebhookEndpoint) -> Result<WebhookEndpoint, ApiError> {
    if endpoint.disabled_reason.is_none() {
        return Ok(endpoint);
    }
    let id = endpoint.webhook_endpoint_id;
    Err(ApiError::Conflict(format!(
        "The webhook endpoint {id} is disabled: nothing is sent to it until it is enabled."
    )))
}
