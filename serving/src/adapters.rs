//! The resident adapters. An adapter is looked up in memory, then on disk, then fetched from the object store.
//!
//! A [`Lease`] pins its adapter. Adapters without a lease stay resident until their memory is needed, and are evicted
//! in least-recently-used order. Loading runs on the caller's task, never on the engine's thread; concurrent callers
//! load an adapter only once. An adapter that cannot be loaded is an error: nothing replaces it.

use std::{
    collections::HashMap,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    serve::{AdapterKey, AdapterRef},
};
use attune_model::{adapter::LoraAdapter, io::tensor_file::TensorFile};
use attune_node::Cache;
use attune_process::{
    error_chain::chain,
    metrics::{ADAPTER_BYTES, ADAPTER_BYTES_MAX, ADAPTERS_LOADED},
};
use attune_text::model::{TextModel, adapter_template};
use reqwest::Client;
use tokio::sync::{Notify, OnceCell};

use crate::{
    answering::grammar::Grammars,
    error::Failure,
    residency::{Reservation, ResidentBudget},
};

/// An adapter in memory.
#[derive(Debug)]
pub struct Resident {
    /// The adapter's key.
    pub id: AdapterKey,
    /// The LoRA factors. Only the engine's thread takes the lock, which exists because tensors are not `Sync`.
    pub factors: Mutex<LoraAdapter>,
    /// The tokenizer and chat template for its prompts: the base's, unless the adapter has its own template.
    pub text: Arc<TextModel>,
    _reservation: Reservation,
}

/// An adapter in use. It stays resident while the lease lives.
#[derive(Debug, Clone)]
pub struct Lease {
    resident: Option<Arc<Resident>>,
    freed: Arc<Notify>,
}

impl Lease {
    /// Returns the leased adapter.
    #[must_use]
    pub fn resident(&self) -> Option<&Arc<Resident>> {
        self.resident.as_ref()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Release the adapter before the notification: a notified waiter must find it idle.
        self.resident = None;
        self.freed.notify_waiters();
    }
}

/// The dependencies of loading an adapter.
pub struct Source {
    /// The client that fetches from the object store.
    pub client: Client,
    /// The node's disk cache.
    pub cache: Cache,
    /// The base's architecture, which adapters must fit.
    pub architecture: Architecture,
    /// The base's tokenizer and chat template.
    pub text: Arc<TextModel>,
    /// The grammars of constrained answers.
    pub grammars: Arc<Grammars>,
}

/// The adapters of this process.
pub struct Adapters {
    source: Source,
    budget: ResidentBudget,
    table: Mutex<AdapterTable>,
}

#[derive(Default)]
struct AdapterTable {
    slots: HashMap<AdapterKey, Slot>,
    uses: u64,
}

struct Slot {
    cell: Arc<OnceCell<Arc<Resident>>>,
    last_use: u64,
}

impl Slot {
    /// Returns whether the adapter is loaded and nothing leases it or waits for it. Call it under the adapter table's
    /// lock, which every new user takes.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.cell) == 1 && self.cell.get().is_some_and(|resident| Arc::strong_count(resident) == 1)
    }
}

impl Adapters {
    /// Creates an empty adapter table.
    #[must_use]
    pub fn new(source: Source, budget: ResidentBudget) -> Self {
        Self { source, budget, table: Mutex::default() }
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
        let table = self.table();
        let mut ids: Vec<_> = table.slots.iter().filter(|(_, s)| s.cell.initialized()).map(|(id, _)| *id).collect();
        ids.sort();
        ids
    }

    /// Sets the metrics of the adapters in memory.
    pub fn publish(&self) {
        ADAPTERS_LOADED.set([], self.resident().len() as f64);
        ADAPTER_BYTES.set([], self.budget.used().0 as f64);
        ADAPTER_BYTES_MAX.set([], self.budget.total().0 as f64);
    }

    /// Pins an adapter, and loads it first if it is not in memory. May wait for memory that leased adapters hold.
    ///
    /// # Errors
    /// [`Failure::Adapter`]: it cannot be fetched, does not fit this base, or is larger than all memory for adapters.
    pub async fn lease(&self, wanted: &AdapterRef) -> Result<Lease, Failure> {
        let cell = self.cell(wanted.id);
        let loaded = cell.get_or_try_init(|| self.load(wanted)).await.cloned();
        drop(cell);
        match loaded {
            Ok(resident) => Ok(Lease { resident: Some(resident), freed: self.budget.freed() }),
            Err(why) => {
                tracing::warn!(adapter = %wanted.id, %why, "adapter not available");
                Err(Failure::Adapter { id: wanted.id.to_string(), why })
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, AdapterTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, id: AdapterKey) -> Arc<OnceCell<Arc<Resident>>> {
        let mut table = self.table();
        table.slots.retain(|_, slot| slot.cell.initialized() || Arc::strong_count(&slot.cell) > 1);
        table.uses += 1;
        let now = table.uses;
        let slot = table.slots.entry(id).or_insert_with(|| Slot { cell: Arc::default(), last_use: now });
        slot.last_use = now;
        slot.cell.clone()
    }

    async fn load(&self, wanted: &AdapterRef) -> Result<Arc<Resident>, String> {
        let id = wanted.id;
        let key = id.to_string();
        let fetched = self.source.cache.folder(&self.source.client, "adapter", &key, &wanted.files).await;
        let folder = fetched.map_err(|e| chain(&e))?;
        let size = factor_bytes(&folder)?;
        let reservation = self.reserve(size).await?;
        let (architecture, base_text) = (self.source.architecture.clone(), self.source.text.clone());
        let read = tokio::task::spawn_blocking(move || {
            let factors = LoraAdapter::load(&folder, &architecture).map_err(|e| chain(&e))?;
            Ok::<_, String>((Mutex::new(factors), text_of(&folder, base_text)?))
        });
        let (factors, text) = read.await.map_err(|e| e.to_string())??;
        tracing::info!(adapter = %id, bytes = size.0, "adapter {id} is loaded ({size})");
        Ok(Arc::new(Resident { id, factors, text, _reservation: reservation }))
    }

    /// Reserves memory for an adapter: free memory, or that of evicted idle adapters; else waits for memory.
    async fn reserve(&self, size: Bytes) -> Result<Reservation, String> {
        if size > self.budget.total() {
            return Err(format!(
                "it needs {size} of memory, and the limit for all adapters is {}",
                self.budget.total()
            ));
        }
        let freed = self.budget.freed();
        loop {
            let mut notified = pin!(freed.notified());
            notified.as_mut().enable(); // from here on no release is missed
            while !self.evict_until(size) {
                notified.as_mut().await;
                notified.set(freed.notified());
                notified.as_mut().enable();
            }
            if let Some(reservation) = self.budget.reserve(size) {
                return Ok(reservation);
            }
        }
    }

    /// Evicts idle adapters, the least recently used first, until `size` is free. Returns whether it is.
    fn evict_until(&self, size: Bytes) -> bool {
        let mut table = self.table();
        while self.budget.total().saturating_sub(self.budget.used()) < size {
            let idle = table.slots.iter().filter(|(_, slot)| slot.is_idle()).min_by_key(|(_, slot)| slot.last_use);
            let Some((&id, _)) = idle else { return false };
            tracing::info!(adapter = %id, "adapter {id} is evicted");
            table.slots.remove(&id);
        }
        true
    }
}

/// Returns the memory of the factors as `f32`, whatever type the file stores.
fn factor_bytes(folder: &Path) -> Result<Bytes, String> {
    let file = TensorFile::open(&folder.join("adapter_model.safetensors")).map_err(|e| chain(&e))?;
    let count = |name: &String| file.shape(name).map_or(0, |shape| shape.iter().product::<i64>());
    Ok(Bytes(file.names().iter().map(|name| u64::try_from(count(name)).unwrap_or(0) * 4).sum()))
}

/// Returns the text model with the adapter's own chat template, or the base's if the adapter has none or an equal one.
fn text_of(folder: &Path, base: Arc<TextModel>) -> Result<Arc<TextModel>, String> {
    let Some(source) = adapter_template(folder).map_err(|e| chain(&e))? else { return Ok(base) };
    if base.template().is_some_and(|template| template.source() == source) {
        return Ok(base);
    }
    base.with_template(&source).map(Arc::new).map_err(|e| chain(&e))
}
