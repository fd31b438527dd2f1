//! The delivery loop: claims due deliveries, starts as many attempts as the limits allow, and records the outcome of
//! each.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_outbound::{
    client::{Answer, Client, SendError},
    policy::Policy,
};
use attune_process::{
    error_chain::chain,
    failpoint::FailPoint,
    metrics::{WEBHOOK_ATTEMPT_SECONDS, WEBHOOK_ATTEMPTS},
};
use attune_store::{
    config::WebhooksConfig,
    db,
    error::StoreError,
    webhooks::{
        seal::SealKey,
        webhook_endpoint,
        webhook_queue::{self, Bounds, Claim, Next, Outcome},
    },
};
use rand::RngExt;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{message, verdict};

/// The polling interval when nothing was due.
const LOOK: Duration = Duration::from_millis(500);

/// The timeout of an attempt.
const PATIENCE: Duration = Duration::from_secs(15);

/// The lease of an attempt, in seconds: no other attempt of the same delivery starts before it expires.
const LEASE_SECONDS: f64 = 60.0;

/// The maximum number of concurrent attempts.
const AT_ONCE: usize = 64;

/// The maximum number of concurrent attempts per endpoint.
const PER_ENDPOINT: i64 = 4;

/// The maximum number of concurrent attempts per project.
const PER_PROJECT: i64 = 16;

/// The maximum number of events expanded into deliveries in one transaction.
const RELAYED_AT_ONCE: i64 = 200;

/// Shared state of attempts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender {
    pool: PgPool,
    key: Arc<SealKey>,
    client: Client,
    slots: Arc<Semaphore>,
}

impl Sender {
    /// Creates the sender; `None`: this installation has no key for endpoints' secrets, and so no webhooks.
    ///
    /// # Errors
    /// The key is too short, or the system's certificates cannot be read.
    pub(crate) fn new(pool: PgPool, config: &WebhooksConfig) -> anyhow::Result<Option<Self>> {
        let Some(key) = config.seal_key()? else { return Ok(None) };
        let policy = Policy { allow_loopback: config.allow_loopback, ports: config.ports.clone() };
        Ok(Some(Self {
            pool,
            key: Arc::new(key),
            client: Client::new(policy, PATIENCE)?,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }))
    }
}

/// Runs until `stop`; attempts in progress are completed.
pub(crate) async fn deliver(sender: Sender, stop: CancellationToken) {
    match reseal(&sender).await {
        Ok(0) => {}
        Ok(endpoints) => tracing::info!(endpoints, "webhook secrets were sealed under the new key"),
        Err(error) => tracing::warn!(error = chain(&error), "webhook secrets could not be sealed under the new key"),
    }
    let attempts = TaskTracker::new();
    while !stop.is_cancelled() {
        let found = match look(&sender, &attempts).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = chain(&error), "polling for webhooks failed; it is retried");
                false
            }
        };
        if !found {
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(LOOK) => {} }
        }
    }
    attempts.close();
    attempts.wait().await;
}

async fn reseal(sender: &Sender) -> Result<usize, StoreError> {
    let mut tx = db::platform(&sender.pool).await?;
    let resealed = webhook_endpoint::reseal(&mut tx, &sender.key).await?;
    tx.commit().await?;
    Ok(resealed)
}

/// Polls once. Returns whether there was anything, so that there may be more.
async fn look(sender: &Sender, attempts: &TaskTracker) -> Result<bool, StoreError> {
    let mut tx = db::platform(&sender.pool).await?;
    let relayed = webhook_queue::relay(&mut tx, RELAYED_AT_ONCE).await?;
    tx.commit_at(FailPoint::WebhookRelay).await?;
    let slots = sender.slots.available_permits();
    if slots == 0 {
        return Ok(relayed > 0);
    }
    let mut tx = db::platform(&sender.pool).await?;
    let bounds = Bounds {
        attempts: slots as i64,
        per_endpoint: PER_ENDPOINT,
        per_project: PER_PROJECT,
        lease_seconds: LEASE_SECONDS,
    };
    let claims = webhook_queue::claim(&mut tx, bounds).await?;
    tx.commit_at(FailPoint::WebhookClaim).await?;
    let found = relayed > 0 || !claims.is_empty();
    for claim in claims {
        // Only this loop acquires permits, and it has just counted them.
        let Ok(place) = sender.slots.clone().try_acquire_owned() else { break };
        let sender = sender.clone();
        attempts.spawn(async move {
            if let Err(error) = attempt(&sender, &claim).await {
                tracing::warn!(delivery.id = %claim.webhook_delivery_id, error = chain(&error),
                    "an attempt could not be made or recorded; it is retried when its lease expires");
            }
            drop(place);
        });
    }
    Ok(found)
}

#[tracing::instrument(skip_all, fields(delivery.id = %claim.webhook_delivery_id, project.id = %claim.project_id))]
async fn attempt(sender: &Sender, claim: &Claim) -> Result<(), StoreError> {
    let body = message::body(&claim.event);
    let headers = message::headers(&claim.event, claim.started_at, &body, &claim.secrets(&sender.key)?)?;
    let begun = Instant::now();
    let sent = match url::Url::parse(&claim.url) {
        Ok(url) => sender.client.post(&url, headers, body).await,
        Err(error) => Err(SendError::Failed(error.to_string())),
    };
    let roll: f64 = rand::rng().random();
    let (next, error) = verdict::judge(&sent, usize::try_from(claim.failures).unwrap_or(0), roll);
    let latency_ms = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX);
    let outcome = outcome(sent.ok(), latency_ms, error);
    tracing::info!(attempt = claim.number, status = outcome.status_code, latency_ms,
        event.type = claim.event.kind, "a webhook was attempted: {next:?}");
    let mut tx = db::platform(&sender.pool).await?;
    webhook_queue::settle(&mut tx, claim, &outcome, next).await?;
    tx.commit_at(FailPoint::WebhookSettle).await?;
    WEBHOOK_ATTEMPTS.inc([name(next)]);
    WEBHOOK_ATTEMPT_SECONDS.observe([], f64::from(latency_ms) / 1000.0);
    Ok(())
}

/// Returns the name of an attempt's outcome in metrics.
const fn name(next: Next) -> &'static str {
    match next {
        Next::Delivered => "delivered",
        Next::Again(_) => "again",
        Next::GivenUp => "abandoned",
        Next::Gone => "gone",
    }
}

fn outcome(answer: Option<Answer>, latency_ms: u32, error: Option<String>) -> Outcome {
    let status_code = answer.as_ref().map(|answer| answer.status.as_u16());
    let response_excerpt = answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
    Outcome { status_code, latency_ms, response_excerpt, error }
}
