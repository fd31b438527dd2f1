//! The resident adapters. An adapter is looked up in memory, then on disk, then fetched from the object store.
//!
//! A [`Lease`] pins its adapter. Adapters without a lease stay resident until their memory is needed, and are evicted
//! in least-recently-used order, those that the platform pins after all others. Loading runs on the caller's task,
//! never on the engine's thread; concurrent callers load an adapter only once. An adapter that cannot be loaded is an
//! error of the requests for it: nothing replaces it, and no other adapter waits for it.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use attune_domain::{
    bytes::Bytes,
    serve::{AdapterKey, AdapterRef, AdapterState, AdapterTier, DiskAdapter, Priority},
};
use attune_node::NodeError;
use attune_process::{
    error_chain::chain,
    metrics::{
        ADAPTER_BYTES, ADAPTER_BYTES_MAX, ADAPTER_DISK_BYTES, ADAPTER_EVICTIONS, ADAPTER_LEASES, ADAPTER_LOAD_FAILURES,
        ADAPTER_LOAD_TIME, ADAPTERS_LOADED,
    },
};
use attune_text::model::TextModel;
use tokio::{sync::OnceCell, time::timeout};

pub use crate::residency::lease::{Lease, Resident};
use crate::{
    answering::grammar::Grammars,
    error::Failure,
    residency::{
        Reservation, ResidentBudget,
        load_error::LoadError,
        loader::{Content, Source, disk_adapters, forget_on_disk},
        turns::ProjectTurns,
    },
};

/// The time after a prefetch that failed before the adapter is prefetched again: the platform requests it with every
/// reply, and each attempt may fetch the files again.
const PREFETCH_PAUSE: Duration = Duration::from_secs(60);

/// The adapters of this process.
pub struct Adapters {
    source: Source,
    budget: ResidentBudget,
    /// The maximum time that a live request waits for memory.
    max_wait: Duration,
    turns: ProjectTurns,
    table: Mutex<AdapterTable>,
    /// `true` if the disk cache was changed since it was last listed.
    disk_changed: AtomicBool,
}

#[derive(Default)]
struct AdapterTable {
    slots: HashMap<AdapterKey, Slot>,
    /// The adapters that the platform pins.
    pinned: HashSet<AdapterKey>,
    /// The times at which prefetches failed, within [`PREFETCH_PAUSE`].
    failed: HashMap<AdapterKey, Instant>,
    uses: u64,
}

struct Slot {
    cell: Arc<OnceCell<Arc<Resident>>>,
    last_use: u64,
    used_at: Instant,
}

impl Slot {
    /// Returns whether the adapter is loaded and nothing leases it or waits for it. Call it under the adapter table's
    /// lock, which every new user takes.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.cell) == 1 && self.cell.get().is_some_and(|resident| Arc::strong_count(resident) == 1)
    }

    /// Returns whether the adapter is loaded or being loaded.
    fn is_live(&self) -> bool {
        self.cell.initialized() || Arc::strong_count(&self.cell) > 1
    }
}

/// The reason of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose<'a> {
    /// A request of a project and a class, which waits for memory, and for which pinned adapters are evicted too.
    Request(&'a str, Priority),
    /// A prefetch, which does neither.
    Prefetch,
}

impl Adapters {
    /// Creates an empty adapter table, in which a live request waits for memory for at most `max_wait`.
    #[must_use]
    pub fn new(source: Source, budget: ResidentBudget, max_wait: Duration) -> Self {
        let (turns, table) = (ProjectTurns::default(), Mutex::default());
        Self { source, budget, max_wait, turns, table, disk_changed: AtomicBool::new(true) }
    }

    /// Returns the base's tokenizer and chat template.
    #[must_use]
    pub fn base_text(&self) -> &Arc<TextModel> {
        &self.source.text
    }

    /// Returns the grammars of constrained answers; adapters share the base's vocabulary.
    #[must_use]
    pub const fn grammars(&self) -> &Arc<Grammars> {
        &self.source.grammars
    }

    /// Returns the base's vocabulary size.
    #[must_use]
    pub const fn vocabulary(&self) -> u64 {
        self.source.architecture.vocab_size
    }

    /// Returns the keys of the adapters in memory, sorted.
    #[must_use]
    pub fn resident(&self) -> Vec<AdapterKey> {
        self.states().into_iter().map(|state| state.id).collect()
    }

    /// Returns the states of the adapters in memory, sorted by key.
    #[must_use]
    pub fn states(&self) -> Vec<AdapterState> {
        let table = self.table();
        let state = |slot: &Slot| {
            let resident = slot.cell.get()?;
            Some(AdapterState {
                id: resident.id,
                bytes: resident.bytes(),
                requests: resident.requests(),
                idle_seconds: slot.used_at.elapsed().as_secs(),
                load_ms: u64::try_from(resident.load_time.as_millis()).unwrap_or(u64::MAX),
                loaded_from: resident.loaded_from,
            })
        };
        let mut states: Vec<_> = table.slots.values().filter_map(state).collect();
        states.sort_by_key(|state| state.id);
        states
    }

    /// Returns whether this process has changed the disk cache since it last listed it.
    #[must_use]
    pub fn disk_changed(&self) -> bool {
        self.disk_changed.load(Ordering::Relaxed)
    }

    /// Returns the adapters in the node's disk cache. Reads the metadata of all its files, so it may block.
    ///
    /// # Errors
    /// [`NodeError::Io`].
    pub fn on_disk(&self) -> Result<Vec<DiskAdapter>, NodeError> {
        self.disk_changed.store(false, Ordering::Relaxed); // before the listing, so that no change is missed
        let adapters = disk_adapters(&self.source.cache)?;
        let bytes: Bytes = adapters.iter().map(|adapter| adapter.bytes).sum();
        ADAPTER_DISK_BYTES.set([], bytes.0 as f64);
        Ok(adapters)
    }

    /// Sets the metrics of the adapters in memory.
    pub fn publish(&self) {
        ADAPTERS_LOADED.set([], self.resident().len() as f64);
        ADAPTER_BYTES.set([], self.budget.used().0 as f64);
        ADAPTER_BYTES_MAX.set([], self.budget.total().0 as f64);
    }

    /// Leases an adapter for a request of a project, and loads it first if it is not in memory. May wait for memory
    /// that leased adapters hold, in turns with other projects.
    ///
    /// # Errors
    /// [`Failure::Adapter`]: it cannot be fetched, does not fit this base, or is larger than all memory for adapters.
    /// [`Failure::ReplicaBusy`]: no memory for it was free in time; only for a live request.
    pub async fn lease(&self, wanted: &AdapterRef, project: &str, priority: Priority) -> Result<Lease, Failure> {
        match self.hold(wanted, Purpose::Request(project, priority)).await {
            Ok(lease) => {
                ADAPTER_LEASES.inc([lease.tier().name()]);
                Ok(lease)
            }
            Err(why) => {
                tracing::warn!(adapter = %wanted.id, why = chain(&why), "adapter not available");
                let (id, waited) = (wanted.id.to_string(), self.max_wait.as_secs());
                Err(match why {
                    LoadError::NoMemory { .. } => {
                        Failure::ReplicaBusy(format!("the adapter {id} was not loaded within {waited} s: {why}"))
                    }
                    why => Failure::Adapter { id, why: Box::new(why) },
                })
            }
        }
    }

    /// Loads an adapter ahead of requests, if there is memory for it that no request and no pinned adapter needs. A
    /// failure is logged, and for a minute only a request for the adapter tries again.
    pub async fn prefetch(&self, wanted: &AdapterRef) {
        if !self.is_due(wanted.id) {
            return;
        }
        match self.hold(wanted, Purpose::Prefetch).await {
            Ok(_) => {}
            Err(why @ LoadError::NoMemory { .. }) => tracing::debug!(adapter = %wanted.id, %why, "not prefetched"),
            Err(why) => {
                tracing::warn!(adapter = %wanted.id, why = chain(&why), "a pinned adapter could not be loaded");
                self.table().failed.insert(wanted.id, Instant::now());
            }
        }
    }

    /// Returns whether an adapter that is to be prefetched is neither in memory nor being loaded, and its last prefetch
    /// did not fail recently.
    fn is_due(&self, id: AdapterKey) -> bool {
        let mut table = self.table();
        table.failed.retain(|_, failed| failed.elapsed() < PREFETCH_PAUSE);
        let is_live = table.slots.get(&id).is_some_and(Slot::is_live);
        !is_live && !table.failed.contains_key(&id)
    }

    /// Counts as a use of an adapter, if it is in memory: others are evicted before it.
    pub fn keep(&self, id: AdapterKey) {
        let mut table = self.table();
        table.uses += 1;
        let now = table.uses;
        if let Some(slot) = table.slots.get_mut(&id) {
            slot.last_use = now;
        }
    }

    /// Replaces the pinned adapters. They are evicted only when a request needs memory that no other adapter frees.
    pub fn pin(&self, ids: &[AdapterKey]) {
        self.table().pinned = ids.iter().copied().collect();
    }

    /// Removes deleted adapters from memory and from the disk cache, except where they are in use. Deletes files, so it
    /// may block.
    pub fn forget(&self, ids: &[AdapterKey]) {
        let mut table = self.table();
        for id in ids {
            if table.slots.get(id).is_some_and(Slot::is_idle) {
                table.slots.remove(id);
            }
        }
        drop(table);
        ids.iter().for_each(|id| forget_on_disk(&self.source.cache, *id));
        self.disk_changed.store(true, Ordering::Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, AdapterTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, id: AdapterKey) -> Arc<OnceCell<Arc<Resident>>> {
        let mut table = self.table();
        table.slots.retain(|_, slot| slot.is_live());
        table.uses += 1;
        let (now, used_at) = (table.uses, Instant::now());
        let slot = table.slots.entry(id).or_insert_with(|| Slot { cell: Arc::default(), last_use: now, used_at });
        (slot.last_use, slot.used_at) = (now, used_at);
        slot.cell.clone()
    }

    async fn hold(&self, wanted: &AdapterRef, purpose: Purpose<'_>) -> Result<Lease, LoadError> {
        let cell = self.cell(wanted.id);
        let mut tier = AdapterTier::Memory;
        let load = || {
            tier = self.source.tier(wanted);
            self.load(wanted, tier, purpose)
        };
        let resident = cell.get_or_try_init(load).await?.clone();
        drop(cell);
        Ok(Lease::new(resident, tier, self.budget.freed()))
    }

    async fn load(
        &self,
        wanted: &AdapterRef,
        tier: AdapterTier,
        purpose: Purpose<'_>,
    ) -> Result<Arc<Resident>, LoadError> {
        let mut loaded = self.load_from(tier, wanted, purpose).await;
        if tier == AdapterTier::Disk && loaded.as_ref().is_err_and(LoadError::is_content) {
            // Files are checked when they are fetched, so these were damaged on the disk.
            tracing::warn!(adapter = %wanted.id, "the files in the disk cache cannot be used; fetching them again");
            self.source.discard(wanted).await?;
            loaded = self.load_from(AdapterTier::Store, wanted, purpose).await;
        }
        loaded.inspect_err(|why| ADAPTER_LOAD_FAILURES.inc([why.reason()]))
    }

    async fn load_from(
        &self,
        tier: AdapterTier,
        wanted: &AdapterRef,
        purpose: Purpose<'_>,
    ) -> Result<Arc<Resident>, LoadError> {
        let id = wanted.id;
        let began = Instant::now();
        let fetched = self.source.fetch(wanted).await?;
        if tier == AdapterTier::Store {
            self.disk_changed.store(true, Ordering::Relaxed);
        }
        let (size, fetching) = (fetched.bytes, began.elapsed());
        let reservation = self.reserve(size, purpose).await?;
        let began = Instant::now();
        let Content { factors, text } = self.source.read(wanted, fetched).await?;
        let load_time = fetching + began.elapsed();
        ADAPTER_LOAD_TIME.observe([tier.name()], load_time.as_secs_f64());
        tracing::info!(
            adapter = %id,
            bytes = size.0,
            tier = tier.name(),
            load_ms = u64::try_from(load_time.as_millis()).unwrap_or(u64::MAX),
            "adapter {id} is loaded ({size})"
        );
        let (factors, requests) = (Mutex::new(factors), AtomicU64::new(0));
        Ok(Arc::new(Resident { id, factors, text, load_time, loaded_from: tier, requests, reservation }))
    }

    /// Reserves memory for an adapter: free memory, or that of evicted idle adapters; else a request waits for memory.
    async fn reserve(&self, size: Bytes, purpose: Purpose<'_>) -> Result<Reservation, LoadError> {
        if size > self.budget.total() {
            return Err(LoadError::TooLarge { size, limit: self.budget.total() });
        }
        let reserved = match purpose {
            Purpose::Request(project, priority) => {
                let in_turn = async {
                    let _turn = self.turns.turn(project, priority).await;
                    self.memory(size, purpose).await
                };
                match priority {
                    Priority::Live => timeout(self.max_wait, in_turn).await.ok(),
                    Priority::Batch => Some(in_turn.await),
                }
            }
            Purpose::Prefetch if self.evict_until(size, purpose) => self.budget.reserve(size),
            Purpose::Prefetch => None,
        };
        reserved.ok_or(LoadError::NoMemory { size })
    }

    /// Waits until memory is reserved.
    async fn memory(&self, size: Bytes, purpose: Purpose<'_>) -> Reservation {
        let freed = self.budget.freed();
        loop {
            let mut notified = pin!(freed.notified());
            notified.as_mut().enable(); // from here on no release is missed
            if !self.evict_until(size, purpose) {
                notified.await;
            } else if let Some(reservation) = self.budget.reserve(size) {
                return reservation;
            }
        }
    }

    /// Evicts idle adapters, the least recently used first, until `size` is free. Returns whether it is.
    fn evict_until(&self, size: Bytes, purpose: Purpose<'_>) -> bool {
        let mut table = self.table();
        let AdapterTable { slots, pinned, .. } = &mut *table;
        while self.budget.total().saturating_sub(self.budget.used()) < size {
            let evictable = slots
                .iter()
                .filter(|(id, slot)| slot.is_idle() && (purpose != Purpose::Prefetch || !pinned.contains(*id)));
            let Some((&id, _)) = evictable.min_by_key(|(id, slot)| (pinned.contains(*id), slot.last_use)) else {
                return false;
            };
            tracing::info!(adapter = %id, "adapter {id} is evicted");
            ADAPTER_EVICTIONS.inc(["memory"]);
            slots.remove(&id);
        }
        true
    }
}
