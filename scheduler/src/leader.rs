//! The leadership of this scheduler: waiting for it, keeping it, and its term, which fences every transaction.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use attune_store::{
    config::DatabaseConfig,
    db::Tx,
    error::StoreError,
    leadership::{Leadership, Term},
};
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The interval between two attempts to lead.
const TRY_INTERVAL: Duration = Duration::from_millis(500);

/// The interval between two signs of life.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);

/// The term of this process, and the doubt whether it still leads.
#[derive(Debug)]
pub(crate) struct Leader {
    term: AtomicI64,
    /// Notified when a transaction found another term.
    doubted: Notify,
}

impl Leader {
    /// Creates the leader of `term`.
    pub(crate) fn new(term: Term) -> Self {
        Self { term: AtomicI64::new(term.number()), doubted: Notify::new() }
    }

    fn term(&self) -> Term {
        Term::new(self.term.load(Ordering::Acquire))
    }

    fn set(&self, term: Term) {
        self.term.store(term.number(), Ordering::Release);
    }

    /// Begins a transaction of the leader.
    ///
    /// # Errors
    /// [`StoreError::Deposed`]: another scheduler leads; [`keep`] then ends this one. As [`Term::begin`].
    pub(crate) async fn begin(&self, pool: &PgPool) -> Result<Tx, StoreError> {
        let begun = self.term().begin(pool).await;
        if matches!(begun, Err(StoreError::Deposed)) {
            self.doubted.notify_one();
        }
        begun
    }

    /// Returns when another scheduler leads. A transaction that began before this process led again proves nothing.
    async fn deposed(&self, pool: &PgPool) {
        loop {
            self.doubted.notified().await;
            if matches!(self.term().begin(pool).await, Err(StoreError::Deposed)) {
                return;
            }
        }
    }
}

/// Waits until this process leads; `None`: a stop was requested first.
///
/// # Errors
/// The database has not answered for `patience`.
pub(crate) async fn take(
    config: &DatabaseConfig,
    patience: Duration,
    stop: &CancellationToken,
) -> Result<Option<Leadership>> {
    let (mut answered, mut is_logged) = (Instant::now(), false);
    loop {
        match Leadership::try_take(config).await {
            Ok(Some(leadership)) => return Ok(Some(leadership)),
            Ok(None) => {
                answered = Instant::now();
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::info!("another scheduler leads; waiting");
                }
            }
            Err(error) if answered.elapsed() > patience => return Err(error).context("checking for another scheduler"),
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(TRY_INTERVAL) => {}
        }
    }
}

/// The result of a sign of life.
enum Renewed {
    Leading,
    Deposed,
    Disconnected,
}

async fn renew(held: &mut Leadership, leader: &Leader, pool: &PgPool) -> Renewed {
    tokio::select! {
        renewed = held.renew() => match renewed {
            Ok(true) => Renewed::Leading,
            Ok(false) => Renewed::Deposed,
            Err(_) => Renewed::Disconnected,
        },
        () = leader.deposed(pool) => Renewed::Deposed,
    }
}

/// Gives signs of life until a stop is requested, and returns the leadership, which ends when it is dropped.
///
/// Waits without end for an unavailable database. Exiting would end the processes of the local provider too, and no
/// other scheduler can take over meanwhile.
///
/// # Errors
/// Another scheduler has taken over: this one was suspended, or its connection was lost.
pub(crate) async fn keep(
    config: &DatabaseConfig,
    mut held: Leadership,
    (leader, pool): (&Leader, &PgPool),
    stop: &CancellationToken,
) -> Result<Leadership> {
    loop {
        let is_deposed = tokio::select! {
            () = stop.cancelled() => return Ok(held),
            () = leader.deposed(pool) => true,
            () = tokio::time::sleep(RENEW_INTERVAL) => false,
        };
        let renewed = if is_deposed { Renewed::Deposed } else { renew(&mut held, leader, pool).await };
        match renewed {
            Renewed::Leading => continue,
            Renewed::Deposed => bail!("another scheduler has taken over"),
            Renewed::Disconnected => {}
        }
        tracing::warn!("the database connection was lost; checking again for another scheduler");
        tokio::select! {
            () = stop.cancelled() => return Ok(held),
            again = reclaim(config) => held = again.context("another scheduler has taken over")?,
        }
        leader.set(held.term());
    }
}

/// Retries until the database answers; `None`: another scheduler leads.
async fn reclaim(config: &DatabaseConfig) -> Option<Leadership> {
    loop {
        match Leadership::try_take(config).await {
            Ok(answer) => return answer,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}
