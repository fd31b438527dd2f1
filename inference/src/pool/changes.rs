//! The signal that a replica has a new state, from the database's notifications.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use attune_process::error_chain::chain;
use attune_store::pools::pool_changes;
use sqlx::PgPool;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// The longest time without a look at the database while notifications arrive: one could be lost.
const LISTENING_INTERVAL: Duration = Duration::from_secs(5);

/// The interval between two looks at the database while no notifications arrive.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The interval between two attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The signal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReplicaChanges(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    signal: watch::Sender<()>,
    is_listening: AtomicBool,
}

impl Default for ReplicaChanges {
    fn default() -> Self {
        Self(Arc::new(Shared { signal: watch::Sender::new(()), is_listening: AtomicBool::new(false) }))
    }
}

impl ReplicaChanges {
    /// Forwards the database's notifications, without end.
    pub async fn listen_on(&self, pool: PgPool) {
        loop {
            let changed = || {
                self.0.is_listening.store(true, Ordering::Relaxed);
                self.0.signal.send_replace(());
            };
            if let Err(error) = pool_changes::listen(&pool, changed).await {
                tracing::warn!("notifications of replicas do not arrive; retrying: {}", chain(&error));
            }
            self.0.is_listening.store(false, Ordering::Relaxed);
            self.0.signal.send_replace(());
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Returns a receiver that sees all later changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.signal.subscribe()
    }

    /// Waits for a change, or for the time after which one may have been missed.
    pub(crate) async fn wait(&self, seen: &mut watch::Receiver<()>) {
        let interval = if self.0.is_listening.load(Ordering::Relaxed) { LISTENING_INTERVAL } else { POLL_INTERVAL };
        // An elapsed timeout is a reason to look too, and the sender lives as long as `self`.
        let _ = timeout(interval, seen.changed()).await;
    }
}
