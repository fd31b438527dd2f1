//! Webhook endpoints and deliveries.

use attune_domain::event::EventType;
use attune_store::webhooks::{
    webhook_delivery::{Attempt, Event, WebhookDelivery},
    webhook_endpoint::{ALL_EVENTS, Change, NewEndpoint, WebhookEndpoint},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{error::ApiError, http::path_id::truncated};

/// The maximum length of a description, in characters.
const MOST_DESCRIPTION: usize = 1024;

/// The request body for creating a webhook endpoint.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhookEndpoint {
    /// The URL: `https://…` or `http://…`, without credentials, at a public address.
    #[schema(example = "https://hooks.example/attune", max_length = 2048)]
    pub url: String,
    /// The types of the events to send. Defaults to `["*"]`: all events, including types that are added later.
    #[schema(example = json!(["fine_tuning.job.succeeded", "fine_tuning.job.failed"]), min_items = 1, max_items = 64)]
    pub event_types: Option<Vec<String>>,
    /// A human-readable description.
    #[schema(max_length = 1024)]
    pub description: Option<String>,
}

impl NewWebhookEndpoint {
    /// Checks the fields except the URL, which the caller checks.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn check(self, url: String) -> Result<NewEndpoint, ApiError> {
        let event_types = self.event_types.unwrap_or_else(|| vec![ALL_EVENTS.into()]);
        check_types(&event_types)?;
        let description = self.description.unwrap_or_default();
        check_description(&description)?;
        Ok(NewEndpoint { url, description, event_types })
    }
}

/// The request body for changing a webhook endpoint. Omitted fields are not changed.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookEndpointChange {
    /// The URL.
    #[schema(max_length = 2048)]
    pub url: Option<String>,
    /// The types of the events to send.
    #[schema(min_items = 1, max_items = 64)]
    pub event_types: Option<Vec<String>>,
    /// A human-readable description.
    #[schema(max_length = 1024)]
    pub description: Option<String>,
    /// The status: `enabled` or `disabled`. Deliveries that are pending when the endpoint is disabled stay pending;
    /// events that occur before it is enabled again are not sent.
    pub status: Option<WebhookEndpointStatus>,
}

/// The status of a webhook endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookEndpointStatus {
    /// Events are sent.
    Enabled,
    /// No events are sent.
    Disabled,
}

impl WebhookEndpointChange {
    /// Checks the fields except the URL, which the caller checks.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn check(self, url: Option<String>) -> Result<Change, ApiError> {
        if let Some(event_types) = &self.event_types {
            check_types(event_types)?;
        }
        check_description(self.description.as_deref().unwrap_or_default())?;
        let enabled = self.status.map(|status| status == WebhookEndpointStatus::Enabled);
        Ok(Change { url, description: self.description, event_types: self.event_types, enabled })
    }
}

fn check_description(text: &str) -> Result<(), ApiError> {
    let length = text.chars().count();
    if length > MOST_DESCRIPTION {
        let message = format!("Invalid 'description': {length} characters; at most {MOST_DESCRIPTION} are allowed.");
        return Err(ApiError::invalid("description", message));
    }
    if text.contains('\0') {
        return Err(ApiError::invalid("description", "Invalid 'description': a zero character is not allowed."));
    }
    Ok(())
}

fn check_types(names: &[String]) -> Result<(), ApiError> {
    if names.is_empty() {
        let message = "Invalid 'event_types': give at least one type, or [\"*\"] for all.";
        return Err(ApiError::invalid("event_types", message));
    }
    for (i, name) in names.iter().enumerate() {
        let param = format!("event_types[{i}]");
        if name != ALL_EVENTS && EventType::from_name(name).is_none() {
            let known: Vec<String> = EventType::all().map(|event| format!("'{event}'")).collect();
            let given = truncated(name);
            let allowed = known.join(", ");
            let message = format!("Invalid '{param}': there is no event type '{given}'; there are '*', {allowed}.");
            return Err(ApiError::invalid(param, message));
        }
        if names[..i].contains(name) {
            let message = format!("Invalid '{param}': '{name}' is given twice.");
            return Err(ApiError::invalid(param, message));
        }
    }
    Ok(())
}

/// The request body for rotating a signing secret.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRotation {
    /// The number of seconds for which deliveries are signed with the previous secret too. Defaults to 86400, one day;
    /// 0 for none.
    #[schema(minimum = 0, maximum = 604_800)]
    pub overlap_seconds: Option<u32>,
}

impl SecretRotation {
    /// Returns the overlap in seconds.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: it is longer than a week.
    pub fn seconds(&self) -> Result<u32, ApiError> {
        const MOST: u32 = 604_800;
        let seconds = self.overlap_seconds.unwrap_or(86_400);
        if seconds > MOST {
            let message = format!("Invalid 'overlap_seconds': {seconds} is above {MOST}, a week.");
            return Err(ApiError::invalid("overlap_seconds", message));
        }
        Ok(seconds)
    }
}

/// A webhook endpoint of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct WebhookEndpointView {
    /// The endpoint's ID.
    #[schema(example = "we_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `webhook_endpoint`.
    #[schema(example = "webhook_endpoint")]
    pub object: &'static str,
    /// The URL that events are sent to.
    pub url: String,
    /// The types of the events that are sent, or `["*"]`.
    pub event_types: Vec<String>,
    /// A human-readable description.
    pub description: String,
    /// The status.
    pub status: WebhookEndpointStatus,
    /// The reason why the endpoint is disabled: `user`, by a request; `gone`, because it responded with 410.
    pub disabled_reason: Option<String>,
    /// The secret that verifies signatures, `whsec_…`. Returned only when the endpoint is created and when the secret
    /// is rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The time until which deliveries are signed with the previous secret too, in Unix seconds; `null` if they are
    /// not.
    pub previous_secret_expires_at: Option<i64>,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
}

impl From<WebhookEndpoint> for WebhookEndpointView {
    fn from(endpoint: WebhookEndpoint) -> Self {
        let status = match endpoint.disabled_reason {
            None => WebhookEndpointStatus::Enabled,
            Some(_) => WebhookEndpointStatus::Disabled,
        };
        Self {
            id: endpoint.webhook_endpoint_id.to_string(),
            object: "webhook_endpoint",
            url: endpoint.url,
            event_types: endpoint.event_types,
            description: endpoint.description,
            status,
            disabled_reason: endpoint.disabled_reason,
            secret: None,
            previous_secret_expires_at: endpoint.previous_secret_until.map(|until| until.timestamp()),
            created_at: endpoint.created_at.timestamp(),
        }
    }
}

impl WebhookEndpointView {
    /// Creates the view of an endpoint with its secret.
    pub fn with_secret(endpoint: WebhookEndpoint, secret: &SecretString) -> Self {
        Self { secret: Some(secret.expose_secret().to_owned()), ..endpoint.into() }
    }
}

/// An event, as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EventView {
    /// The event's ID, and the `webhook-id` of each attempt to deliver it.
    #[schema(example = "evt_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `event`.
    #[schema(example = "event")]
    pub object: &'static str,
    /// The type of the event.
    #[schema(example = "fine_tuning.job.succeeded")]
    pub r#type: String,
    /// The time of the event, in Unix seconds.
    pub created_at: i64,
    /// The object that the event is about: its `id`, and more fields for some types.
    #[schema(value_type = Object)]
    pub data: Value,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            id: event.event_id.to_string(),
            object: "event",
            r#type: event.kind,
            created_at: event.created_at.timestamp(),
            data: event.data,
        }
    }
}

/// An attempt to deliver an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeliveryAttempt {
    /// The number of the attempt, from 1.
    pub number: i32,
    /// The start time, in Unix seconds.
    pub started_at: i64,
    /// The end time, in Unix seconds; `null` while the attempt is in progress.
    pub ended_at: Option<i64>,
    /// The HTTP status code of the response; `null` if there was none.
    pub status_code: Option<i32>,
    /// The duration of the request, in milliseconds.
    pub latency_ms: Option<i32>,
    /// The beginning of the response's body, at most 1024 bytes.
    pub response_excerpt: Option<String>,
    /// The reason why the attempt failed; `null` if it did not.
    pub error: Option<String>,
}

impl From<Attempt> for DeliveryAttempt {
    fn from(attempt: Attempt) -> Self {
        Self {
            number: attempt.number,
            started_at: attempt.started_at.timestamp(),
            ended_at: attempt.ended_at.map(|at| at.timestamp()),
            status_code: attempt.status_code,
            latency_ms: attempt.latency_ms,
            response_excerpt: attempt.response_excerpt,
            error: attempt.error,
        }
    }
}

/// The delivery of an event to an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct WebhookDeliveryView {
    /// The delivery's ID.
    #[schema(example = "wd_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `webhook_delivery`.
    #[schema(example = "webhook_delivery")]
    pub object: &'static str,
    /// The ID of the webhook endpoint.
    pub webhook_endpoint: String,
    /// The event.
    pub event: EventView,
    /// The status: `pending`, `delivered` or `failed`.
    #[schema(example = "delivered")]
    pub status: String,
    /// The time of the next attempt, in Unix seconds; `null` if there is none.
    pub next_attempt_at: Option<i64>,
    /// The attempts, the oldest first.
    pub attempts: Vec<DeliveryAttempt>,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
}

impl From<WebhookDelivery> for WebhookDeliveryView {
    fn from(delivery: WebhookDelivery) -> Self {
        Self {
            id: delivery.webhook_delivery_id.to_string(),
            object: "webhook_delivery",
            webhook_endpoint: delivery.webhook_endpoint_id.to_string(),
            event: delivery.event.into(),
            status: delivery.state,
            next_attempt_at: delivery.next_attempt_at.map(|at| at.timestamp()),
            attempts: delivery.attempts.into_iter().map(DeliveryAttempt::from).collect(),
            created_at: delivery.created_at.timestamp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(event_types: &[&str]) -> (String, String) {
        let names: Vec<String> = event_types.iter().map(|&name| name.into()).collect();
        let error = check_types(&names).unwrap_err().body().error;
        (error.param.unwrap_or_default(), error.message)
    }

    #[test]
    fn an_unknown_type_is_named_with_those_that_are_sent() {
        let (param, message) = refused(&["*", "fine_tuning.job.done"]);
        assert_eq!(param, "event_types[1]");
        assert!(message.contains("'fine_tuning.job.done'") && message.contains("'fine_tuning.job.succeeded'"));
        assert_eq!(refused(&["*", "*"]).0, "event_types[1]");
        assert_eq!(refused(&[]).0, "event_types");
        let all: Vec<String> = EventType::all().map(|event| event.to_string()).collect();
        assert!(check_types(&all).is_ok());
    }
}
