//! The sweep: deletes expired rows and objects, the oldest first, until none is due or the time limit is reached.
//!
//! Each kind is swept in batches, each batch in a transaction of its own: locks are short, and a failing batch does not
//! revert earlier ones. A kind that fails does not keep the others from being swept.

use std::time::Duration;

use attune_process::failpoint::FailPoint;
use futures::future::BoxFuture;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

use crate::{
    adapters::adapter_traffic,
    db,
    error::StoreError,
    exports::{export, export_file},
    files::{blob, file, leftovers, objects::Objects, project_blob, upload},
    idempotency,
    jobs::checkpoint,
    queue,
    runs::run_blob,
    sweep_batch::Batch,
    webhooks::webhook_queue,
};

/// The time limit for one kind in one pass, in seconds; the next pass continues with the rest.
pub const KIND_SECONDS: u64 = 60;

/// The number of deletions of a kind in a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The kind, in the plural.
    pub kind: &'static str,
    /// The number deleted.
    pub gone: u64,
}

type Sweeper = for<'a> fn(&'a mut PgConnection, &'a Objects) -> BoxFuture<'a, Result<Batch, StoreError>>;

/// All kinds, ordered so that one that creates work for another comes before it.
const KINDS: [(&str, Sweeper); 15] = [
    ("messages", |tx, _| Box::pin(queue::sweep(tx))),
    ("files", |tx, _| Box::pin(file::expire(tx))),
    ("checkpoints", |tx, _| Box::pin(checkpoint::sweep(tx))),
    ("parts", |tx, objects| Box::pin(upload::sweep(tx, objects))),
    ("uploads", |tx, _| Box::pin(upload::forget_old(tx))),
    ("staged objects", |tx, objects| Box::pin(leftovers::sweep_staged(tx, objects))),
    ("multipart uploads", |tx, objects| Box::pin(leftovers::sweep_multipart(tx, objects))),
    ("exports", |tx, _| Box::pin(export::expire(tx))),
    ("files of exports", |tx, objects| Box::pin(export_file::sweep(tx, objects))),
    ("blobs", |tx, objects| Box::pin(blob::sweep(tx, objects))),
    ("rights to name content", |tx, _| Box::pin(project_blob::sweep(tx))),
    ("grants of ended runs", |tx, objects| Box::pin(run_blob::sweep(tx, objects))),
    ("events", |tx, _| Box::pin(webhook_queue::sweep(tx))),
    ("keys", |tx, _| Box::pin(idempotency::forget_old(tx))),
    ("minutes of traffic", |tx, _| Box::pin(adapter_traffic::sweep(tx))),
];

/// Runs one pass over a pool of the platform ([`db::connect_as_platform`]), with this time limit for each kind. Returns
/// the kinds with deletions.
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
                    tracing::warn!(%error, "sweeping {kind} failed; it is retried later");
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
    tx.commit_at(FailPoint::SweepBatch).await?;
    Ok(batch)
}
