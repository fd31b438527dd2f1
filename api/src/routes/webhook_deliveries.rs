//! The deliveries of events to a webhook endpoint, and their replay.

use attune_domain::{
    access::{Role, Scope},
    event::EventType,
    id::WebhookDelivery as DeliveryKind,
};
use attune_store::{
    version::Thing,
    webhooks::webhook_delivery::{self, Wanted},
};
use axum::{
    Json,
    extract::{Path, State},
};

use super::webhooks;
use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{
        pagination::{List, Params},
        path_id::parse_id,
    },
    policy::Policy,
    wire::webhook::WebhookDeliveryView,
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("list_webhook_deliveries", Scope::Webhooks, Role::Viewer).names(Thing::WebhookEndpoint),
    Policy::project("retrieve_webhook_delivery", Scope::Webhooks, Role::Viewer).names(Thing::WebhookEndpoint),
    Policy::project("replay_webhook_delivery", Scope::Webhooks, Role::Member).names(Thing::WebhookEndpoint),
];

/// List the deliveries of a webhook endpoint, newest first.
///
/// Each delivery has its event and every attempt. Deliveries are kept for 30 days.
#[utoipa::path(get, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries", tag = "Webhooks",
    operation_id = "list_webhook_deliveries",
    params(
        ("webhook_endpoint_id" = String, Path),
        ("status" = Option<String>, Query,
            description = "Return only deliveries with this status: `pending`, `delivered` or `failed`."),
        ("event_type" = Option<String>, Query, description = "Return only deliveries of events of this type."),
        ("after" = Option<String>, Query, pattern = "^wd_[0-9a-f]{32}$",
            description = "Return deliveries after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<WebhookDeliveryView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<Json<List<WebhookDeliveryView>>, ApiError> {
    let (after, limit) = (query.after::<DeliveryKind>()?, query.limit(20, 100)?);
    let wanted = Wanted { state: state(&mut query)?, kind: kind(&mut query)?, after, limit: limit + 1 };
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let endpoint = webhooks::find(&mut db, holder.project_id, &id).await?;
    let found = webhook_delivery::list(&mut db, holder.project_id, endpoint.webhook_endpoint_id, &wanted).await?;
    let views = found.into_iter().map(WebhookDeliveryView::from).collect();
    Ok(Json(List::cut(views, limit, |delivery: &WebhookDeliveryView| delivery.id.clone())))
}

/// Retrieve a delivery of a webhook endpoint.
#[utoipa::path(get, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}", tag = "Webhooks",
    operation_id = "retrieve_webhook_delivery",
    params(("webhook_endpoint_id" = String, Path), ("delivery_id" = String, Path)),
    responses((status = 200, body = WebhookDeliveryView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((endpoint, id)): Path<(String, String)>,
) -> Result<Json<WebhookDeliveryView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let endpoint = webhooks::find(&mut db, holder.project_id, &endpoint).await?.webhook_endpoint_id;
    let found = webhook_delivery::get(&mut db, holder.project_id, endpoint, parse_id(&id)?).await;
    Ok(Json(found.map_err(ApiError::on_read(id))?.into()))
}

/// Replay a delivery of a webhook endpoint.
///
/// The delivery is sent immediately, whatever its status, and with the full schedule of retries. The event and the
/// `webhook-id` are the same.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/replay",
    tag = "Webhooks", operation_id = "replay_webhook_delivery",
    params(("webhook_endpoint_id" = String, Path), ("delivery_id" = String, Path)),
    responses((status = 200, body = WebhookDeliveryView), (status = "4XX", body = ErrorBody)))]
pub async fn replay(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((endpoint, id)): Path<(String, String)>,
) -> Result<Json<WebhookDeliveryView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let endpoint = webhooks::enabled(webhooks::find(&mut tx, holder.project_id, &endpoint).await?)?;
    let of = endpoint.webhook_endpoint_id;
    let delivery = webhook_delivery::replay(&mut tx, holder.project_id, of, parse_id(&id)?)
        .await
        .map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(delivery.into()))
}

fn state(query: &mut Params) -> Result<Option<String>, ApiError> {
    let Some(text) = query.take("status")? else { return Ok(None) };
    if ["pending", "delivered", "failed"].contains(&text.as_str()) {
        return Ok(Some(text));
    }
    let message = format!("Invalid 'status': '{text}'; give pending, delivered or failed.");
    Err(ApiError::invalid("status", message))
}

fn kind(query: &mut Params) -> Result<Option<String>, ApiError> {
    let Some(text) = query.take("event_type")? else { return Ok(None) };
    match EventType::from_name(&text) {
        Some(_) => Ok(Some(text)),
        None => Err(ApiError::invalid("event_type", format!("Invalid 'event_type': there is no '{text}'."))),
    }
}
