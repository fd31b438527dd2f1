//! Webhook endpoints: make, list, look, change, delete, rotate the secret, try. What is sent, and when, is the
//! scheduler's.

use attune_domain::id::{ProjectId, WebhookEndpoint as EndpointKind};
use attune_store::webhooks::{
    webhook_delivery,
    webhook_endpoint::{self, MOST_PER_PROJECT, WebhookEndpoint},
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
        path_id::named,
    },
    wire::{
        file::Deleted,
        webhook::{
            NewWebhookEndpoint, SecretRotation, WebhookDeliveryView, WebhookEndpointChange, WebhookEndpointView,
        },
    },
};

/// Make a webhook endpoint.
///
/// The answer holds its secret, this once: what the receiver checks signatures with. A project may have 50 endpoints.
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
        ("after" = Option<String>, Query, pattern = "^we_[0-9a-f]{32}$", description = "The list goes on behind the endpoint of this id."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 if left out."),
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

/// Look at a webhook endpoint.
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

/// Change a webhook endpoint: its URL, its events, its description, whether it is enabled.
///
/// What is left out stays. One that was disabled because it answered 410 is enabled in the same way.
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
    let endpoint = webhook_endpoint::update(&mut tx, holder.project_id, named(&id)?, &change)
        .await
        .map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(endpoint.into()))
}

/// Delete a webhook endpoint, with its deliveries.
#[utoipa::path(delete, path = "/v1/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "delete_webhook_endpoint", params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let endpoint = named(&id)?;
    webhook_endpoint::delete(&mut tx, holder.project_id, endpoint).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(Deleted { id: endpoint.to_string(), object: "webhook_endpoint", deleted: true }))
}

/// Replace a webhook endpoint's secret.
///
/// The answer holds the new one, this once. For `overlap_seconds` each delivery is signed with both, so a receiver can
/// change over in its own time.
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
    let of = (holder.project_id, named(&id)?);
    let (endpoint, secret) =
        webhook_endpoint::rotate(&mut tx, app.webhooks.key()?, of, overlap).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(WebhookEndpointView::with_secret(endpoint, &secret)))
}

/// Send a webhook endpoint an event that says nothing but that it works.
///
/// The event's type is `webhook_endpoint.test`. The answer is the delivery; look at it again to see what came of it.
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

/// The project's endpoint of this id.
///
/// # Errors
/// [`ApiError::NotFound`].
pub(super) async fn find(db: &mut PgConnection, project: ProjectId, id: &str) -> Result<WebhookEndpoint, ApiError> {
    webhook_endpoint::get(db, project, named(id)?).await.map_err(ApiError::on_read(id))
}

/// The endpoint, if anything is sent to it.
///
/// # Errors
/// [`ApiError::Conflict`].
pub(super) fn enabled(endpoint: WebhookEndpoint) -> Result<WebhookEndpoint, ApiError> {
    if endpoint.disabled_reason.is_none() {
        return Ok(endpoint);
    }
    let id = endpoint.webhook_endpoint_id;
    Err(ApiError::Conflict(format!(
        "The webhook endpoint {id} is disabled: nothing is sent to it until it is enabled."
    )))
}
