//! The adapters that the engine has loaded. An adapter's folder stays in the node's cache while the engine may read it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attune_domain::{
    peft,
    serve::{AdapterKey, AdapterRef, AdapterTier, DiskAdapter, ReplicaReply},
    spec::AdapterSpec,
};
use attune_node::{ADAPTERS, Cache, Folder, NodeError};
use attune_process::{error_chain::chain, metrics::ADAPTERS_LOADED};
use attune_text::model::TextModel;
use reqwest::Client;
use tokio::{sync::OnceCell, task::spawn_blocking};

use super::engine::EngineClient;
use crate::{
    error::Failure,
    residency::{
        load_error::LoadError,
        loader::{disk_adapters, forget_on_disk, text_of},
    },
};

/// The maximum number of adapters that the engine has loaded, in addition to those in use. The engine itself keeps as
/// many of them in its memory as it was configured for.
const MOST_LOADED: usize = 512;

/// An adapter that the engine has loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The adapter's key.
    pub(crate) id: AdapterKey,
    /// The name by which the engine knows it.
    pub(crate) name: String,
    /// The tokenizer and chat template for its prompts.
    pub(crate) text: Arc<TextModel>,
    folder: Folder,
}

impl Loaded {
    /// Returns the path of its folder.
    pub(crate) fn path(&self) -> String {
        self.folder.to_string_lossy().into_owned()
    }
}

/// An adapter in use, which is not unloaded while this lives.
#[derive(Debug, Clone)]
pub(crate) struct InUse {
    /// The adapter.
    pub(crate) loaded: Arc<Loaded>,
    /// The place where it was found.
    pub(crate) tier: AdapterTier,
}

/// The dependencies of loading an adapter.
pub(crate) struct Source {
    /// The client that fetches from the object store.
    pub(crate) client: Client,
    /// The node's disk cache, in a folder that the engine reads too.
    pub(crate) cache: Cache,
    /// The base's tokenizer and chat template.
    pub(crate) text: Arc<TextModel>,
    /// The engine.
    pub(crate) engine: EngineClient,
    /// The highest rank that the engine loads.
    pub(crate) max_rank: u32,
}

/// The adapters of the engine.
pub(crate) struct EngineAdapters {
    source: Source,
    table: Mutex<Table>,
    /// Held while the engine unloads: a load of the same adapter comes after it.
    changing: tokio::sync::Mutex<()>,
    /// Held while pinned adapters are loaded.
    prefetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    slots: HashMap<AdapterKey, Slot>,
    pinned: Vec<AdapterKey>,
    uses: u64,
}

#[derive(Default)]
struct Slot {
    cell: Arc<OnceCell<Arc<Loaded>>>,
    last_use: u64,
}

impl Slot {
    /// Returns whether the adapter is loaded and no request uses it.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.cell) == 1 && self.cell.get().is_some_and(|loaded| Arc::strong_count(loaded) == 1)
    }
}

impl EngineAdapters {
    /// Creates an empty table.
    pub(crate) fn new(source: Source) -> Self {
        let (changing, prefetching) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        Self { source, table: Mutex::default(), changing, prefetching }
    }

    /// Returns the base's tokenizer and chat template.
    pub(crate) const fn base_text(&self) -> &Arc<TextModel> {
        &self.source.text
    }

    /// Returns the engine's client.
    pub(crate) const fn engine(&self) -> &EngineClient {
        &self.source.engine
    }

    /// Returns the keys of the loaded adapters, sorted.
    pub(crate) fn resident(&self) -> Vec<AdapterKey> {
        let table = self.table();
        let mut ids: Vec<_> = table.slots.iter().filter(|(_, s)| s.cell.initialized()).map(|(id, _)| *id).collect();
        ids.sort();
        ids
    }

    /// Sets the metrics of the loaded adapters.
    pub(crate) fn publish(&self) {
        ADAPTERS_LOADED.set([], self.resident().len() as f64);
    }

    /// Returns the adapters in the disk cache. Reads the metadata of all its files, so it may block.
    ///
    /// # Errors
    /// [`NodeError::Io`].
    pub(crate) fn on_disk(&self) -> Result<Vec<DiskAdapter>, NodeError> {
        disk_adapters(&self.source.cache)
    }

    /// Follows the instructions about adapters: pins adapters, loads those of them that are given with their files, one
    /// after the other, and removes deleted ones.
    pub(crate) async fn follow(&self, reply: ReplicaReply) {
        let ReplicaReply { pinned, prefetch, forget, .. } = reply;
        self.table().pinned = pinned;
        self.forget(forget).await;
        let Ok(_prefetching) = self.prefetching.try_lock() else { return };
        for adapter in prefetch {
            // A failure was logged, and is that of later requests.
            let _ = self.lease(&adapter).await;
        }
    }

    /// Returns an adapter, which the engine loads first if it has not.
    ///
    /// # Errors
    /// [`Failure::Adapter`]: it cannot be fetched, or the engine cannot serve it.
    pub(crate) async fn lease(&self, wanted: &AdapterRef) -> Result<InUse, Failure> {
        let cell = self.cell(wanted.id);
        let mut tier = AdapterTier::Memory;
        let load = || {
            let is_cached = self.source.cache.holds(ADAPTERS, &wanted.id.to_string());
            tier = if is_cached { AdapterTier::Disk } else { AdapterTier::Store };
            self.load(wanted)
        };
        let loaded = cell.get_or_try_init(load).await.cloned();
        drop(cell);
        let loaded = loaded.map_err(|why| {
            tracing::warn!(adapter = %wanted.id, why = chain(&why), "adapter not available");
            Failure::Adapter { id: wanted.id.to_string(), why: Box::new(why) }
        })?;
        if tier != AdapterTier::Memory {
            self.unload_idle().await;
        }
        Ok(InUse { loaded, tier })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, id: AdapterKey) -> Arc<OnceCell<Arc<Loaded>>> {
        let mut table = self.table();
        table.slots.retain(|_, slot| slot.cell.initialized() || Arc::strong_count(&slot.cell) > 1);
        table.uses += 1;
        let now = table.uses;
        let slot = table.slots.entry(id).or_default();
        slot.last_use = now;
        slot.cell.clone()
    }

    async fn load(&self, wanted: &AdapterRef) -> Result<Arc<Loaded>, LoadError> {
        let (source, id) = (&self.source, wanted.id);
        let name = id.to_string();
        let folder = source.cache.folder(&source.client, ADAPTERS, &name, &wanted.files).await?;
        let (engine, max_rank, base_text) = (source.engine.engine(), source.max_rank, source.text.clone());
        let checked = spawn_blocking(move || match engine.adapter_refusal(&spec_of(&folder)?, Some(max_rank)) {
            Some(reason) => Err(LoadError::Engine(reason)),
            None => Ok((text_of(&folder, base_text)?, folder)),
        });
        let (text, folder) = checked.await.map_err(|error| LoadError::Interrupted(error.to_string()))??;
        let loaded = Loaded { id, name, text, folder };
        let _changing = self.changing.lock().await;
        source.engine.load(&loaded.name, &loaded.path()).await.map_err(LoadError::Engine)?;
        tracing::info!(adapter = %id, "the engine has the adapter {id}");
        Ok(Arc::new(loaded))
    }

    /// Unloads the least recently used adapters that are neither in use nor pinned, above [`MOST_LOADED`].
    async fn unload_idle(&self) {
        let _changing = self.changing.lock().await;
        while let Some(loaded) = self.take_idle() {
            self.unload(&loaded).await;
        }
    }

    /// Unloads deleted adapters, and removes them from the disk cache, except where they are in use.
    async fn forget(&self, ids: Vec<AdapterKey>) {
        if ids.is_empty() {
            return;
        }
        let changing = self.changing.lock().await;
        for id in &ids {
            if let Some(loaded) = self.take(*id) {
                self.unload(&loaded).await;
            }
        }
        drop(changing);
        let cache = self.source.cache.clone();
        let removal = spawn_blocking(move || ids.iter().for_each(|id| forget_on_disk(&cache, *id)));
        let _ = removal.await; // an error would be a panic, which is logged
    }

    async fn unload(&self, loaded: &Loaded) {
        match self.source.engine.unload(&loaded.name).await {
            Ok(()) => tracing::info!(adapter = %loaded.id, "the engine has unloaded the adapter {}", loaded.id),
            Err(why) => tracing::warn!(adapter = %loaded.id, why, "the engine did not unload an adapter"),
        }
    }

    /// Removes and returns an adapter, unless a request uses it.
    fn take(&self, id: AdapterKey) -> Option<Arc<Loaded>> {
        let mut table = self.table();
        table.slots.get(&id).filter(|slot| slot.is_idle())?;
        table.slots.remove(&id)?.cell.get().cloned()
    }

    fn take_idle(&self) -> Option<Arc<Loaded>> {
        let mut table = self.table();
        if table.slots.len() <= MOST_LOADED {
            return None;
        }
        let idle = table.slots.iter().filter(|(id, slot)| slot.is_idle() && !table.pinned.contains(id));
        let id = idle.min_by_key(|(_, slot)| slot.last_use).map(|(id, _)| *id)?;
        table.slots.remove(&id)?.cell.get().cloned()
    }
}

fn spec_of(folder: &Folder) -> Result<AdapterSpec, LoadError> {
    let unreadable = |error: String| LoadError::Engine(format!("{}: {error}", peft::CONFIG));
    let config = std::fs::read(folder.join(peft::CONFIG)).map_err(|error| unreadable(error.to_string()))?;
    let fields = serde_json::from_slice(&config).map_err(|error| unreadable(error.to_string()))?;
    let refused = |refusals: Vec<peft::Refusal>| {
        let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        LoadError::Engine(reasons.join("; "))
    };
    peft::read(fields).map(|config| config.spec).map_err(refused)
}
