//! The scheduler's side of webhooks: events become deliveries, deliveries are claimed for an attempt, attempts end.
//!
//! Any number of schedulers may do this at once. A row is locked while it is claimed (`for update skip locked`), a
//! claimed delivery is leased for longer than an attempt can take, and the end of an attempt is fenced by its number. A
//! scheduler that dies in an attempt leaves a lease that expires: the delivery is retried, under the same `webhook-id`.
//! So an event arrives at least once; order is not guaranteed. All times are the database's.

use attune_domain::{
    id::{EventId, ProjectId, WebhookDeliveryId, WebhookEndpointId},
    text::storable::storable,
};
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::StoreError,
    ids,
    sweep_batch::Batch,
    webhooks::{seal::SealKey, webhook_delivery::Event, webhook_endpoint::ALL_EVENTS},
};

/// A claimed attempt.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The delivery's ID.
    pub webhook_delivery_id: WebhookDeliveryId,
    /// The endpoint's ID.
    pub webhook_endpoint_id: WebhookEndpointId,
    /// The project's ID.
    pub project_id: ProjectId,
    /// The number of the attempt, from 1, replays included.
    pub number: i32,
    /// Failed attempts before it, since the start or the last replay.
    pub failures: i32,
    /// The URL.
    pub url: String,
    /// The sealed secret; the previous one too, while it is valid.
    secrets: Vec<Vec<u8>>,
    /// The event.
    pub event: Event,
    /// The start time of the attempt: its `webhook-timestamp`.
    pub started_at: DateTime<Utc>,
}

impl Claim {
    /// Returns the signing secrets, the newest first.
    ///
    /// # Errors
    /// [`StoreError::Seal`].
    pub fn secrets(&self, key: &SealKey) -> Result<Vec<SecretString>, StoreError> {
        let open = |sealed: &Vec<u8>| {
            let clear = key.open(self.webhook_endpoint_id.uuid(), sealed)?;
            let text = String::from_utf8(clear).map_err(|_| StoreError::Seal("the content is not UTF-8"))?;
            Ok(SecretString::from(text))
        };
        self.secrets.iter().map(open).collect()
    }
}

/// Limits of a claim.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The maximum number of attempts to claim: the caller's free capacity.
    pub attempts: i64,
    /// The maximum number of concurrent attempts per endpoint, counted here.
    pub per_endpoint: i64,
    /// The maximum number of concurrent attempts per project, counted here.
    pub per_project: i64,
    /// The lease in seconds: longer than an attempt can take.
    pub lease_seconds: f64,
}

/// Creates a delivery of each unrelayed event for each enabled endpoint of its project that subscribes to it. Returns
/// the number of events.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn relay(tx: &mut PgConnection, limit: i64) -> Result<usize, StoreError> {
    let events = sqlx::query_scalar!(
        "update outbox set relayed_at = now()
         where event_id in (select event_id from outbox where relayed_at is null order by event_id limit $1
             for update skip locked)
         returning event_id",
        limit,
    )
    .fetch_all(&mut *tx)
    .await?;
    let pairs = sqlx::query!(
        "select o.project_id, o.event_id, e.webhook_endpoint_id
         from outbox o join webhook_endpoint e using (project_id)
         where o.event_id = any($1) and e.disabled_reason is null
             and (o.type = any(e.event_types) or $2 = any(e.event_types))
         order by o.event_id",
        &events,
        ALL_EVENTS,
    )
    .fetch_all(&mut *tx)
    .await?;
    let ids: Vec<Uuid> = pairs.iter().map(|_| ids::id::<attune_domain::id::WebhookDelivery>().uuid()).collect();
    sqlx::query!(
        "insert into webhook_delivery (webhook_delivery_id, project_id, webhook_endpoint_id, event_id)
         select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[])",
        &ids,
        &pairs.iter().map(|pair| pair.project_id).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.webhook_endpoint_id).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.event_id).collect::<Vec<_>>(),
    )
    .execute(tx)
    .await?;
    Ok(events.len())
}

/// Claims due deliveries, the longest due first at each endpoint, and records the start of their attempts.
///
/// Projects take turns: the next slot goes to the project with the fewest attempts in progress, so that slow endpoints
/// of one project delay only its own events. The endpoint's row is locked meanwhile, so that two claims cannot both use
/// its free slots.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(tx: &mut PgConnection, bounds: Bounds) -> Result<Vec<Claim>, StoreError> {
    let endpoints = sqlx::query_scalar!(
        "select e.webhook_endpoint_id from webhook_endpoint e
         join (select webhook_endpoint_id, row_number() over (partition by project_id order by due_since) as turn
             from (select o.webhook_endpoint_id, o.project_id, (select min(next_attempt_at) from webhook_delivery d
                     where d.webhook_endpoint_id = o.webhook_endpoint_id and state = 'pending'
                         and next_attempt_at <= now() and coalesce(leased_until <= now(), true)) as due_since
                 from webhook_endpoint o where disabled_reason is null) as o
             where due_since is not null
                 and (select count(*) from webhook_delivery d where d.webhook_endpoint_id = o.webhook_endpoint_id
                     and state = 'pending' and leased_until > now()) < $1) as due using (webhook_endpoint_id)
         order by due.turn limit $2 for no key update of e skip locked",
        bounds.per_endpoint,
        bounds.attempts,
    )
    .fetch_all(&mut *tx)
    .await?;
    let due = sqlx::query_scalar!(
        r#"select webhook_delivery_id as "id!" from (
             select due.webhook_delivery_id, due.next_attempt_at,
                 row_number() over (partition by due.project_id order by due.next_attempt_at)
                     + (select count(*) from webhook_delivery d where d.project_id = due.project_id
                         and state = 'pending' and leased_until > now()) as place
             from unnest($1::uuid[]) as locked(webhook_endpoint_id)
             cross join lateral (select webhook_delivery_id, project_id, next_attempt_at from webhook_delivery d
                 where d.webhook_endpoint_id = locked.webhook_endpoint_id and state = 'pending'
                     and next_attempt_at <= now() and coalesce(leased_until <= now(), true)
                 order by next_attempt_at
                 limit greatest(0, $2 - (select count(*) from webhook_delivery d
                     where d.webhook_endpoint_id = locked.webhook_endpoint_id and state = 'pending'
                         and leased_until > now()))) as due) as placed
         where place <= $3 order by place, next_attempt_at limit $4"#,
        &endpoints,
        bounds.per_endpoint,
        bounds.per_project,
        bounds.attempts,
    )
    .fetch_all(&mut *tx)
    .await?;
    if due.is_empty() {
        return Ok(Vec::new());
    }
    begin(tx, &due, bounds.lease_seconds).await
}

/// Leases the deliveries, closes attempts that a dead scheduler left open, and inserts the new attempts.
async fn begin(tx: &mut PgConnection, due: &[Uuid], lease_seconds: f64) -> Result<Vec<Claim>, StoreError> {
    sqlx::query!(
        "update webhook_delivery set attempts = attempts + 1, leased_until = now() + make_interval(secs => $2)
         where webhook_delivery_id = any($1)",
        due,
        lease_seconds,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "update webhook_attempt set ended_at = now(),
             error = 'the attempt was interrupted; whether it arrived is not known'
         where webhook_delivery_id = any($1) and ended_at is null",
        due,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into webhook_attempt (webhook_delivery_id, number)
         select webhook_delivery_id, attempts from webhook_delivery where webhook_delivery_id = any($1)",
        due,
    )
    .execute(&mut *tx)
    .await?;
    let rows = sqlx::query!(
        r#"select d.webhook_delivery_id, d.webhook_endpoint_id, d.project_id, d.attempts, d.failures, e.url, e.secret,
             case when e.previous_secret_until > now() then e.previous_secret end as previous_secret,
             o.event_id, o.type as kind, o.data, o.created_at, now() as "started_at!"
         from webhook_delivery d join webhook_endpoint e using (webhook_endpoint_id) join outbox o using (event_id)
         where d.webhook_delivery_id = any($1)"#,
        due,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Claim {
            webhook_delivery_id: WebhookDeliveryId::new(row.webhook_delivery_id),
            webhook_endpoint_id: WebhookEndpointId::new(row.webhook_endpoint_id),
            project_id: ProjectId::new(row.project_id),
            number: row.attempts,
            failures: row.failures,
            url: row.url,
            secrets: std::iter::once(row.secret).chain(row.previous_secret).collect(),
            event: Event {
                event_id: EventId::new(row.event_id),
                kind: row.kind,
                data: row.data,
                created_at: row.created_at,
            },
            started_at: row.started_at,
        })
        .collect())
}

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The HTTP status of the response, if there was one.
    pub status_code: Option<u16>,
    /// The latency in milliseconds.
    pub latency_ms: u32,
    /// The beginning of the response body.
    pub response_excerpt: Option<String>,
    /// The error, if it failed.
    pub error: Option<String>,
}

/// The next step of a delivery.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Next {
    /// The delivery succeeded.
    Delivered,
    /// The delivery is retried after so many seconds.
    Again(f64),
    /// The delivery failed for good.
    GivenUp,
    /// The delivery failed, and its endpoint is disabled: it answered that it is gone.
    Gone,
}

/// Records the end of an attempt. If another one has started meanwhile, the delivery and its endpoint are left
/// unchanged.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn settle(tx: &mut PgConnection, claim: &Claim, outcome: &Outcome, next: Next) -> Result<(), StoreError> {
    let excerpt = outcome.response_excerpt.as_deref().map(storable);
    sqlx::query!(
        "update webhook_attempt set ended_at = now(), status_code = $3, latency_ms = $4, response_excerpt = $5,
             error = $6
         where webhook_delivery_id = $1 and number = $2",
        claim.webhook_delivery_id.uuid(),
        claim.number,
        outcome.status_code.map(i32::from),
        i32::try_from(outcome.latency_ms).unwrap_or(i32::MAX),
        excerpt.as_deref(),
        outcome.error,
    )
    .execute(&mut *tx)
    .await?;
    let (state, delay) = match next {
        Next::Delivered => ("delivered", 0.0),
        Next::Again(seconds) => ("pending", seconds),
        Next::GivenUp | Next::Gone => ("failed", 0.0),
    };
    let settled = sqlx::query!(
        "update webhook_delivery set state = $3, leased_until = null, failures = failures + $4,
             next_attempt_at = now() + make_interval(secs => $5)
         where webhook_delivery_id = $1 and attempts = $2 and state = 'pending'",
        claim.webhook_delivery_id.uuid(),
        claim.number,
        state,
        i32::from(next != Next::Delivered),
        delay,
    )
    .execute(&mut *tx)
    .await?;
    if next == Next::Gone && settled.rows_affected() > 0 {
        sqlx::query!(
            "update webhook_endpoint set disabled_reason = coalesce(disabled_reason, 'gone')
             where webhook_endpoint_id = $1 and url = $2",
            claim.webhook_endpoint_id.uuid(),
            claim.url,
        )
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// The number of events deleted in one transaction.
const SWEPT_AT_ONCE: i64 = 1000;

/// Deletes events that are older than 30 days, with their deliveries, including those that an installation without
/// webhooks has never relayed.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn sweep(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let swept = sqlx::query!(
        "delete from outbox where event_id in (select event_id from outbox
             where created_at < now() - interval '30 days' order by created_at limit $1)",
        SWEPT_AT_ONCE,
    )
    .execute(tx)
    .await?;
    Ok(Batch { gone: swept.rows_affected(), has_more: swept.rows_affected() >= SWEPT_AT_ONCE.unsigned_abs() })
}
