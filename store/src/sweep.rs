//! Clearing up: rows and objects whose time is over, the oldest first, until nothing is due or the time for it is over.
//!
//! Each kind goes in batches, each batch in a transaction of its own: locks are short, and what has gone stays gone when a
//! later batch fails. A kind that fails does not keep the others from being swept.

use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

use crate::{
    db,
    error::StoreError,
    files::{blob, file, objects::Objects, project_blob, upload},
    idempotency,
    jobs::checkpoint,
    queue,
    runs::run_blob,
    sweep_batch::Batch,
    webhooks::webhook_queue,
};

/// The time for one kind in one pass; the next pass goes on with the rest.
pub const KIND_SECONDS: u64 = 60;

/// How much of a kind went in a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The kind, in the plural.
    pub kind: &'static str,
    /// How many went.
    pub gone: u64,
}

type Sweeper = for<'a> fn(&'a mut PgConnection, &'a Objects) -> BoxFuture<'a, Result<Batch, StoreError>>;

/// All kinds, in the order in which one makes work for a later one.
const KINDS: [(&str, Sweeper); 11] = [
    ("messages", |tx, _| Box::pin(queue::sweep(tx))),
    ("files", |tx, _| Box::pin(file::expire(tx))),
    ("checkpoints", |tx, _| Box::pin(checkpoint::sweep(tx))),
    ("parts", |tx, objects| Box::pin(upload::sweep(tx, objects))),
    ("uploads", |tx, _| Box::pin(upload::forget_old(tx))),
    ("staged objects", |tx, objects| Box::pin(upload::sweep_staged(tx, objects))),
    ("blobs", |tx, objects| Box::pin(blob::sweep(tx, objects))),
    ("rights to name content", |tx, _| Box::pin(project_blob::sweep(tx))),
    ("grants of ended runs", |tx, objects| Box::pin(run_blob::sweep(tx, objects))),
    ("events", |tx, _| Box::pin(webhook_queue::sweep(tx))),
    ("keys", |tx, _| Box::pin(idempotency::forget_old(tx))),
];

/// One pass over a pool of the platform ([`db::connect_as_platform`]), with this much time for each kind. Returns the
/// kinds of which something went.
pub async fn pass(pool: &PgPool, objects: &Objects, patience: Duration) -> Vec<Swept> {
    let mut all = Vec::new();
    for (kind, sweeper) in KINDS {
        let (until, mut gone) = (Instant::now() + patience, 0);
        loop {
            match batch(pool, objects, sweeper).await {
                Ok(batch) => {
                    gone += batch.gone;
                    if !batch.has_more || Instant::now() >= until {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "sweeping {kind} failed; it is tried again later");
                    break;
                }
            }
        }
        if gone > 0 {
            all.push(Swept { kind, gone });
        }
    }
    all
}

async fn batch(pool: &PgPool, objects: &Objects, sweeper: Sweeper) -> Result<Batch, StoreError> {
    let mut tx = db::begin(pool).await?;
    let batch = sweeper(&mut tx, objects).await?;
    tx.commit().await?;
    Ok(batch)
}
