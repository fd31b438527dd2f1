//! Where projects want to be told of events.

use attune_domain::id::{ProjectId, WebhookEndpointId};
use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::StoreError,
    mint,
    webhooks::seal::{self, SealKey},
};

/// How many a project may have: each event is sent to every one of them.
pub const MOST_PER_PROJECT: i64 = 50;

/// In `event_types`: all of them.
pub const ALL_EVENTS: &str = "*";

/// An endpoint as its row has it, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEndpoint {
    /// Which endpoint.
    pub webhook_endpoint_id: WebhookEndpointId,
    /// Where to send.
    pub url: String,
    /// The user's own words.
    pub description: String,
    /// What to send: names of types, or [`ALL_EVENTS`].
    pub event_types: Vec<String>,
    /// Why nothing is sent: `user` or `gone`; `None`: it is enabled.
    pub disabled_reason: Option<String>,
    /// Until when deliveries are signed with the secret before this one too.
    pub previous_secret_until: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// An endpoint to be written down; every field is checked.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Where to send.
    pub url: String,
    /// The user's own words.
    pub description: String,
    /// What to send.
    pub event_types: Vec<String>,
}

/// What is to be another; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Where to send.
    pub url: Option<String>,
    /// The user's own words.
    pub description: Option<String>,
    /// What to send.
    pub event_types: Option<Vec<String>>,
    /// Whether to send at all.
    pub enabled: Option<bool>,
}

/// The row as Postgres gives it.
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

/// What a receiver checks signatures with, as it is shown: `whsec_` and the base64 of 32 random bytes.
///
/// Source: Standard Webhooks, "Signature scheme".
fn new_secret() -> Result<SecretString, StoreError> {
    Ok(format!("whsec_{}", BASE64_STANDARD.encode(seal::random::<32>()?)).into())
}

/// Writes an endpoint down, and gives it with its secret, which is not shown again. `None`: the project has
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
    let (id, secret): (WebhookEndpointId, _) = (mint::id(), new_secret()?);
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

/// A project's endpoint.
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

/// A project's endpoints, newest first, from the one after `after` on.
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

/// Changes what `change` names. What waits for a disabled endpoint goes on waiting, and is sent once it is enabled.
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

/// Seals anew what a key before this one has sealed, of all projects, and says how many endpoints that were. What no key
/// opens stays as it is.
///
/// # Errors
/// [`StoreError::Seal`]: the system gives no random bytes. [`StoreError::Database`].
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

/// Gives an endpoint another secret. For `overlap_seconds` deliveries are signed with the one before too.
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
