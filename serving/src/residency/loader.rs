//! The load of an adapter, or of the adapters of a merge: from the node's disk cache or the object store into factors.
//! Files are read and parsed on threads that may block, and never on the engine's.

use std::{path::Path, sync::Arc};

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    run::RemoteFile,
    serve::{AdapterKey, AdapterRef, AdapterTier, DiskAdapter},
};
use attune_model::{adapter::LoraAdapter, error::ModelError, io::tensor_file::TensorFile};
use attune_node::{ADAPTERS, Cache, Folder, NodeError};
use attune_text::{
    error::TextError,
    model::{TextModel, adapter_template},
};
use reqwest::Client;

use super::load_error::LoadError;
use crate::answering::grammar::Grammars;

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

/// The folders of an adapter, or of the parts of a merge. They stay on disk while this value lives.
pub(crate) struct Fetched {
    /// The folders, with the weights of a merge.
    folders: Vec<(Folder, f64)>,
    /// The memory that loading them needs.
    pub(crate) bytes: Bytes,
}

/// The content of an adapter.
pub(crate) struct Content {
    /// The factors.
    pub(crate) factors: LoraAdapter,
    /// The tokenizer and chat template.
    pub(crate) text: Arc<TextModel>,
}

impl Source {
    /// Returns where the adapter is, if it is not in memory: on disk, if all adapters of a merge are.
    pub(crate) fn tier(&self, wanted: &AdapterRef) -> AdapterTier {
        let is_cached = folders(wanted).iter().all(|(id, ..)| self.cache.holds(ADAPTERS, &id.to_string()));
        if is_cached { AdapterTier::Disk } else { AdapterTier::Store }
    }

    /// Returns the folders on disk, and fetches those that are missing.
    pub(crate) async fn fetch(&self, wanted: &AdapterRef) -> Result<Fetched, LoadError> {
        let mut fetched = Fetched { folders: Vec::new(), bytes: Bytes(0) };
        for (id, files, weight) in folders(wanted) {
            let folder = self.cache.folder(&self.client, ADAPTERS, &id.to_string(), files).await?;
            fetched.folders.push((folder, weight));
        }
        on_a_thread(move || {
            // The size of all parts: a merge has that of one of them, or more if they change different projections.
            let sizes = fetched.folders.iter().map(|(folder, _)| factor_bytes(folder));
            fetched.bytes = sizes.sum::<Result<Bytes, ModelError>>()?;
            Ok(fetched)
        })
        .await
    }

    /// Reads the factors and the chat template. A merge has the base's chat template.
    pub(crate) async fn read(&self, wanted: &AdapterRef, fetched: Fetched) -> Result<Content, LoadError> {
        let (architecture, base_text) = (self.architecture.clone(), self.text.clone());
        let rule = wanted.merge.as_ref().map(|merge| merge.rule);
        on_a_thread(move || {
            let mut parts = Vec::with_capacity(fetched.folders.len());
            for (folder, weight) in &fetched.folders {
                parts.push((LoraAdapter::load(folder, &architecture)?, *weight));
            }
            if let Some(rule) = rule {
                let factors = LoraAdapter::combine(&parts, &rule).map_err(LoadError::Merge)?;
                return Ok(Content { factors, text: base_text });
            }
            match (fetched.folders.first(), parts.pop()) {
                (Some((folder, _)), Some((factors, _))) => Ok(Content { factors, text: text_of(folder, base_text)? }),
                _ => Err(LoadError::Interrupted("no folder was fetched".into())),
            }
        })
        .await
    }

    /// Removes the adapter, or the adapters of a merge, from the disk cache, where no process uses them.
    pub(crate) async fn discard(&self, wanted: &AdapterRef) -> Result<(), LoadError> {
        let (cache, ids) = (self.cache.clone(), folders(wanted).iter().map(|(id, ..)| *id).collect::<Vec<_>>());
        on_a_thread(move || {
            for id in ids {
                cache.forget(ADAPTERS, &id.to_string())?;
            }
            Ok(())
        })
        .await
    }
}

/// Returns the adapters in the disk cache. May block.
pub(crate) fn disk_adapters(cache: &Cache) -> Result<Vec<DiskAdapter>, NodeError> {
    let entries = cache.list(ADAPTERS)?.into_iter();
    Ok(entries
        .filter_map(|entry| Some(DiskAdapter { id: AdapterKey::of_id(&entry.key)?, bytes: entry.bytes }))
        .collect())
}

/// Removes a deleted adapter from the disk cache, unless a process uses it. May block.
pub(crate) fn forget_on_disk(cache: &Cache, id: AdapterKey) {
    match cache.forget(ADAPTERS, &id.to_string()) {
        Ok(true) => tracing::info!(adapter = %id, "adapter {id} was deleted, and is removed from the disk cache"),
        Ok(false) => {}
        Err(why) => tracing::warn!(adapter = %id, %why, "a deleted adapter could not be removed"),
    }
}

/// Returns the folders that an adapter consists of, with their weights in a merge.
fn folders(wanted: &AdapterRef) -> Vec<(AdapterKey, &[RemoteFile], f64)> {
    match &wanted.merge {
        Some(merge) => merge.parts.iter().map(|part| (part.id, part.files.as_slice(), part.weight)).collect(),
        None => vec![(wanted.id, wanted.files.as_slice(), 1.0)],
    }
}

/// Runs a function that reads files on a thread that may block.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| LoadError::Interrupted(e.to_string()))?
}

/// Returns the memory of the factors as `f32`, whatever type the file stores.
fn factor_bytes(folder: &Path) -> Result<Bytes, ModelError> {
    let file = TensorFile::open(&folder.join("adapter_model.safetensors"))?;
    let count = |name: &String| file.shape(name).map_or(0, |shape| shape.iter().product::<i64>());
    Ok(Bytes(file.names().iter().map(|name| u64::try_from(count(name)).unwrap_or(0) * 4).sum()))
}

/// Returns the text model with the adapter's own chat template, or the base's if the adapter has none or an equal one.
///
/// # Errors
/// The template is not valid.
pub(crate) fn text_of(folder: &Path, base: Arc<TextModel>) -> Result<Arc<TextModel>, TextError> {
    let Some(source) = adapter_template(folder)? else { return Ok(base) };
    if base.template().is_some_and(|template| template.source() == source) {
        return Ok(base);
    }
    base.with_template(&source).map(Arc::new)
}
