//! Adapters in memory, and their leases.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use attune_domain::{
    bytes::Bytes,
    serve::{AdapterKey, AdapterTier},
};
use attune_model::adapter::LoraAdapter;
use attune_text::model::TextModel;
use tokio::sync::Notify;

use super::Reservation;

/// An adapter in memory.
#[derive(Debug)]
pub struct Resident {
    /// The adapter's key.
    pub id: AdapterKey,
    /// The LoRA factors. Only the engine's thread takes the lock, which exists because tensors are not `Sync`.
    pub factors: Mutex<LoraAdapter>,
    /// The tokenizer and chat template for its prompts: the base's, unless the adapter has its own template.
    pub text: Arc<TextModel>,
    /// The time that its load took, without waiting for memory.
    pub load_time: Duration,
    /// The place that it was loaded from.
    pub loaded_from: AdapterTier,
    /// The number of requests that use it.
    pub(crate) requests: AtomicU64,
    /// The memory of its factors.
    pub(crate) reservation: Reservation,
}

impl Resident {
    /// Returns the number of requests that use it.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns the memory of its factors.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        self.reservation.bytes()
    }
}

/// A request's use of an adapter, which the clones of its lease share.
#[derive(Debug)]
struct Use(Arc<Resident>);

impl Drop for Use {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An adapter in use. It stays resident while the lease lives.
#[derive(Debug, Clone)]
pub struct Lease {
    used: Option<Arc<Use>>,
    tier: AdapterTier,
    freed: Arc<Notify>,
}

impl Lease {
    /// Creates the lease of a request; `freed` is notified when it ends.
    pub(crate) fn new(resident: Arc<Resident>, tier: AdapterTier, freed: Arc<Notify>) -> Self {
        resident.requests.fetch_add(1, Ordering::Relaxed);
        Self { used: Some(Arc::new(Use(resident))), tier, freed }
    }

    /// Returns the leased adapter.
    #[must_use]
    pub fn resident(&self) -> Option<&Arc<Resident>> {
        self.used.as_ref().map(|used| &used.0)
    }

    /// Returns where the adapter was found.
    #[must_use]
    pub const fn tier(&self) -> AdapterTier {
        self.tier
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Release the adapter before the notification: a notified waiter must find it idle.
        self.used = None;
        self.freed.notify_waiters();
    }
}
