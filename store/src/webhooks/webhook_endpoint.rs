//! Webhook endpoints of projects.

use attune_domain::id::{ProjectId, WebhookEndpointId};
use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::StoreError,
    ids,
    webhooks::seal::{self, SealKey},
};

/// The maximum number per project: each event is sent to every one of them.
pub const MOST_PER_PROJECT: i64 = 50;

/// The value in `event_types` that selects all events.
pub const ALL_EVENTS: &str = "*";

/// An endpoint's row, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEndpoint {
    /// The endpoint's ID.
    pub webhook_endpoint_id: WebhookEndpointId,
    /// The URL.
    pub url: String,
    /// The user's description.
    pub description: String,
    /// The event types to send, or [`ALL_EVENTS`].
    pub event_types: Vec<String>,
    /// The reason why it is disabled: `user` or `gone`; `None`: it is enabled.
    pub disabled_reason: Option<String>,
    /// The time until which deliveries are also signed with the previous secret.
    pub previous_secret_until: Option<DateTime<Utc>>,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
}

/// A new endpoint; every field is checked.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// The URL.
    pub url: String,
    /// The user's description.
    pub description: String,
    /// The event types to send.
    pub event_types: Vec<String>,
}

/// A change of an endpoint; `None` keeps a field.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The URL.
    pub url: Option<String>,
    /// The user's description.
    pub description: Option<String>,
    /// The event types to send.
    pub event_types: Option<Vec<String>>,
    /// False to disable it, true to enable it.
    pub enabled: Option<bool>,
}

/// The row as PostgreSQL returns it.
struct Row {
    webhook_endpoint_id: Uuid,
    url: String,
    description: String,
    event_types: Vec<String>,
    disabled_reason: Option<String>,
    previous_secret_until: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl From<Row> for WebhookEndpoint {
    fn from(row: Row) -> Self {
        Self {
            webhook_endpoint_id: WebhookEndpointId::new(row.webhook_endpoint_id),
            url: row.url,
            description: row.description,
            event_types: row.event_types,
            disabled_reason: row.disabled_reason,
            previous_secret_until: row.previous_secret_until,
            created_at: row.created_at,
        }
    }
}

/// Generates a signing secret: `whsec_` and the base64 of 32 random bytes.
///
/// Source: Standard Webhooks, "Signature scheme".
fn new_secret() -> Result<SecretString, StoreError> {
    Ok(format!("whsec_{}", BASE64_STANDARD.encode(seal::random::<32>()?)).into())
}

/// Inserts an endpoint, and returns it with its secret, which is not shown again. `None`: the project has
/// [`MOST_PER_PROJECT`] already.
///
/// # Errors
/// [`StoreError::Seal`], [`StoreError::Database`].
pub async fn insert(
    tx: &mut PgConnection,
    key: &SealKey,
    project: ProjectId,
    new: &NewEndpoint,
) -> Result<Option<(WebhookEndpoint, SecretString)>, StoreError> {
    let (id, secret): (WebhookEndpointId, _) = (ids::id(), new_secret()?);
    let row = sqlx::query_as!(
        Row,
        "insert into webhook_endpoint (webhook_endpoint_id, project_id, url, description, event_types, secret)
         select $1, $2, $3, $4, $5, $6 where (select count(*) from webhook_endpoint where project_id = $2) < $7
         returning webhook_endpoint_id, url, description, event_types, disabled_reason, previous_secret_until,
             created_at",
        id.uuid(),
        project.uuid(),
        new.url,
        new.description,
        &new.event_types,
        key.seal(id.uuid(), secret.expose_secret().as_bytes())?,
        MOST_PER_PROJECT,
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|row| (row.into(), secret)))
}

/// Returns a project's endpoint.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(
    conn: &mut PgConnection,
    project: ProjectId,
    id: WebhookEndpointId,
) -> Result<WebhookEndpoint, StoreError> {
    select(conn, project, Some(id), None, 1).await?.pop().ok_or(StoreError::NotFound("webhook endpoint"))
}

/// Returns a project's endpoints, newest first, after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    after: Option<WebhookEndpointId>,
    limit: i64,
) -> Result<Vec<WebhookEndpoint>, StoreError> {
    select(conn, project, None, after, limit).await
}

async fn select(
    conn: &mut PgConnection,
    project: ProjectId,
    id: Option<WebhookEndpointId>,
    after: Option<WebhookEndpointId>,
    limit: i64,
) -> Result<Vec<WebhookEndpoint>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select webhook_endpoint_id, url, description, event_types, disabled_reason,
             case when previous_secret_until > now() then previous_secret_until end as previous_secret_until,
             created_at
         from webhook_endpoint
         where project_id = $1 and ($2::uuid is null or webhook_endpoint_id = $2)
             and ($3::uuid is null or webhook_endpoint_id < $3)
         order by webhook_endpoint_id desc limit $4"#,
        project.uuid(),
        id.map(|id| id.uuid()),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(WebhookEndpoint::from).collect())
}

/// Applies `change`. Pending deliveries of a disabled endpoint stay pending, and are sent once it is enabled.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn update(
    tx: &mut PgConnection,
    project: ProjectId,
    id: WebhookEndpointId,
    change: &Change,
) -> Result<WebhookEndpoint, StoreError> {
    let changed = sqlx::query!(
        "update webhook_endpoint set url = coalesce($3, url), description = coalesce($4, description),
             event_types = coalesce($5, event_types),
             disabled_reason = case when $6 then null when not $6 then coalesce(disabled_reason, 'user')
                 else disabled_reason end
         where project_id = $1 and webhook_endpoint_id = $2",
        project.uuid(),
        id.uuid(),
        change.url,
        change.description,
        change.event_types.as_deref(),
        change.enabled,
    )
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(StoreError::NotFound("webhook endpoint"));
    }
    get(tx, project, id).await
}

/// Deletes an endpoint with its deliveries.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn delete(tx: &mut PgConnection, project: ProjectId, id: WebhookEndpointId) -> Result<(), StoreError> {
    let deleted = sqlx::query!(
        "delete from webhook_endpoint where project_id = $1 and webhook_endpoint_id = $2",
        project.uuid(),
        id.uuid(),
    )
    .execute(tx)
    .await?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("webhook endpoint")) }
}

/// Reseals secrets of all projects that were sealed under a former key, and returns the number of endpoints. A secret
/// that no key opens is left unchanged.
///
/// # Errors
/// [`StoreError::Seal`]: the system provides no random bytes. [`StoreError::Database`].
pub async fn reseal(tx: &mut PgConnection, key: &SealKey) -> Result<usize, StoreError> {
    let rows = sqlx::query!("select webhook_endpoint_id, secret, previous_secret from webhook_endpoint for update")
        .fetch_all(&mut *tx)
        .await?;
    let mut resealed = 0;
    for row in rows {
        let id = row.webhook_endpoint_id;
        let renewed = |sealed: &[u8]| key.renew(id, sealed).ok().flatten();
        let (secret, previous) = (renewed(&row.secret), row.previous_secret.as_deref().and_then(renewed));
        if secret.is_none() && previous.is_none() {
            continue;
        }
        sqlx::query!(
            "update webhook_endpoint set secret = coalesce($2, secret), previous_secret = coalesce($3, previous_secret)
             where webhook_endpoint_id = $1",
            id,
            secret,
            previous,
        )
        .execute(&mut *tx)
        .await?;
        resealed += 1;
    }
    Ok(resealed)
}

/// Replaces an endpoint's secret. For `overlap_seconds` deliveries are also signed with the previous one.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Seal`], [`StoreError::Database`].
pub async fn rotate(
    tx: &mut PgConnection,
    key: &SealKey,
    (project, id): (ProjectId, WebhookEndpointId),
    overlap_seconds: u32,
) -> Result<(WebhookEndpoint, SecretString), StoreError> {
    let secret = new_secret()?;
    let changed = sqlx::query!(
        "update webhook_endpoint set secret = $3, previous_secret = case when $4::float8 > 0 then secret end,
             previous_secret_until = case when $4 > 0 then now() + make_interval(secs => $4) end
         where project_id = $1 and webhook_endpoint_id = $2",
        project.uuid(),
        id.uuid(),
        key.seal(id.uuid(), secret.expose_secret().as_bytes())?,
        f64::from(overlap_seconds),
    )
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(StoreError::NotFound("webhook endpoint"));
    }
    Ok((get(tx, project, id).await?, secret))
}
