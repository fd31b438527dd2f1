//! Deliveries of events to endpoints, as users read them, and their replay.
//!
//! The scheduler's side is `webhook_queue`.

use attune_domain::{
    event::EventType,
    id::{EventId, ProjectId, WebhookDeliveryId, WebhookEndpointId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{error::StoreError, ids, webhooks::outbox};

/// A delivery of an event to an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookDelivery {
    /// The delivery's ID.
    pub webhook_delivery_id: WebhookDeliveryId,
    /// The endpoint's ID.
    pub webhook_endpoint_id: WebhookEndpointId,
    /// The event.
    pub event: Event,
    /// The state: `pending`, `delivered` or `failed`.
    pub state: String,
    /// The time of the next attempt, if there is one.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
    /// The attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

/// An event as the outbox stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The event's ID.
    pub event_id: EventId,
    /// The name of its type.
    pub kind: String,
    /// The event's data.
    pub data: serde_json::Value,
    /// The time of the event.
    pub created_at: DateTime<Utc>,
}

/// An attempt of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The number of the attempt, from 1.
    pub number: i32,
    /// The start time.
    pub started_at: DateTime<Utc>,
    /// The end time.
    pub ended_at: Option<DateTime<Utc>>,
    /// The HTTP status of the response.
    pub status_code: Option<i32>,
    /// The latency of the attempt in milliseconds.
    pub latency_ms: Option<i32>,
    /// The beginning of the response body.
    pub response_excerpt: Option<String>,
    /// The error, if it failed.
    pub error: Option<String>,
}

/// A filter of an endpoint's deliveries.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The state.
    pub state: Option<String>,
    /// The type of the event.
    pub kind: Option<String>,
    /// The ID to list after.
    pub after: Option<WebhookDeliveryId>,
    /// The maximum number of deliveries.
    pub limit: i64,
}

/// The row as PostgreSQL returns it.
struct Row {
    webhook_delivery_id: Uuid,
    webhook_endpoint_id: Uuid,
    event_id: Uuid,
    kind: String,
    data: serde_json::Value,
    happened_at: DateTime<Utc>,
    state: String,
    next_attempt_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl Row {
    fn with(self, attempts: Vec<Attempt>) -> WebhookDelivery {
        WebhookDelivery {
            webhook_delivery_id: WebhookDeliveryId::new(self.webhook_delivery_id),
            webhook_endpoint_id: WebhookEndpointId::new(self.webhook_endpoint_id),
            event: Event {
                event_id: EventId::new(self.event_id),
                kind: self.kind,
                data: self.data,
                created_at: self.happened_at,
            },
            state: self.state,
            next_attempt_at: self.next_attempt_at,
            created_at: self.created_at,
            attempts,
        }
    }
}

/// Returns the deliveries of a project's endpoint, newest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    endpoint: WebhookEndpointId,
    wanted: &Wanted,
) -> Result<Vec<WebhookDelivery>, StoreError> {
    select(conn, (project, endpoint), None, wanted).await
}

/// Returns one delivery of a project's endpoint.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(
    conn: &mut PgConnection,
    project: ProjectId,
    endpoint: WebhookEndpointId,
    id: WebhookDeliveryId,
) -> Result<WebhookDelivery, StoreError> {
    let wanted = Wanted { limit: 1, ..Wanted::default() };
    let found = select(conn, (project, endpoint), Some(id), &wanted).await?.pop();
    found.ok_or(StoreError::NotFound("webhook delivery"))
}

async fn select(
    conn: &mut PgConnection,
    (project, endpoint): (ProjectId, WebhookEndpointId),
    id: Option<WebhookDeliveryId>,
    wanted: &Wanted,
) -> Result<Vec<WebhookDelivery>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select d.webhook_delivery_id, d.webhook_endpoint_id, d.event_id, o.type as kind, o.data,
             o.created_at as happened_at, d.state,
             case when d.state = 'pending' then d.next_attempt_at end as next_attempt_at, d.created_at
         from webhook_delivery d join outbox o using (event_id)
         where d.project_id = $1 and d.webhook_endpoint_id = $2 and ($3::uuid is null or d.webhook_delivery_id = $3)
             and ($4::uuid is null or d.webhook_delivery_id < $4) and ($5::text is null or d.state = $5)
             and ($6::text is null or o.type = $6)
         order by d.webhook_delivery_id desc limit $7"#,
        project.uuid(),
        endpoint.uuid(),
        id.map(|id| id.uuid()),
        wanted.after.map(|id| id.uuid()),
        wanted.state,
        wanted.kind,
        wanted.limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.webhook_delivery_id).collect();
    let mut attempts = attempts(conn, &ids).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let own =
                attempts.extract_if(.., |(of, _)| *of == row.webhook_delivery_id).map(|(_, attempt)| attempt).collect();
            row.with(own)
        })
        .collect())
}

async fn attempts(conn: &mut PgConnection, deliveries: &[Uuid]) -> Result<Vec<(Uuid, Attempt)>, StoreError> {
    let rows = sqlx::query!(
        "select webhook_delivery_id, number, started_at, ended_at, status_code, latency_ms, response_excerpt, error
         from webhook_attempt where webhook_delivery_id = any($1) order by webhook_delivery_id, number",
        deliveries,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let attempt = Attempt {
                number: row.number,
                started_at: row.started_at,
                ended_at: row.ended_at,
                status_code: row.status_code,
                latency_ms: row.latency_ms,
                response_excerpt: row.response_excerpt,
                error: row.error,
            };
            (row.webhook_delivery_id, attempt)
        })
        .collect())
}

/// Sends a delivery again, immediately and with the whole retry schedule. The event is the same, and so is its
/// `webhook-id`.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn replay(
    tx: &mut PgConnection,
    project: ProjectId,
    endpoint: WebhookEndpointId,
    id: WebhookDeliveryId,
) -> Result<WebhookDelivery, StoreError> {
    sqlx::query!(
        "update webhook_delivery set state = 'pending', failures = 0, next_attempt_at = now()
         where project_id = $1 and webhook_endpoint_id = $2 and webhook_delivery_id = $3",
        project.uuid(),
        endpoint.uuid(),
        id.uuid(),
    )
    .execute(&mut *tx)
    .await?;
    get(tx, project, endpoint, id).await
}

/// Creates a test event for this endpoint alone.
///
/// # Errors
/// [`StoreError::Conflict`]: the endpoint was deleted. [`StoreError::Database`].
pub async fn test(
    tx: &mut PgConnection,
    project: ProjectId,
    endpoint: WebhookEndpointId,
) -> Result<WebhookDelivery, StoreError> {
    let data = serde_json::json!({ "id": endpoint });
    let event = outbox::push(tx, project, EventType::WebhookTest, &data).await?;
    let id: WebhookDeliveryId = ids::id();
    sqlx::query!("update outbox set relayed_at = now() where event_id = $1", event.uuid()).execute(&mut *tx).await?;
    sqlx::query!(
        "insert into webhook_delivery (webhook_delivery_id, project_id, webhook_endpoint_id, event_id)
         values ($1, $2, $3, $4)",
        id.uuid(),
        project.uuid(),
        endpoint.uuid(),
        event.uuid(),
    )
    .execute(&mut *tx)
    .await?;
    get(tx, project, endpoint, id).await
}
