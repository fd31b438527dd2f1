//! The models of a replica: its base with its tokenizer, and its draft model, fetched and loaded.

use std::path::PathBuf;

use anyhow::Context;
use attune_domain::{
    digest::Sha256,
    memory::{BudgetParts, ServedModels},
    placement::Placement,
    run::RemoteFile,
    serve::ServeSpec,
};
use attune_model::{decoder::Decoder, error::ModelError, served::Hold};
use attune_node::{Cache, Folder, NodeError, Platform};
use attune_text::model::TextModel;

/// The models of a replica in memory.
pub(crate) struct Loaded {
    pub(crate) base: Decoder,
    /// The draft model, if the spec has one and drafts are made.
    pub(crate) draft: Option<Decoder>,
    pub(crate) text: TextModel,
}

/// A model's files on the node's disk.
struct Files {
    folder: Folder,
    /// The cache file of the quantized weights.
    packed: PathBuf,
}

impl Loaded {
    /// Fetches the models of `spec`, and loads them on a thread of their own.
    ///
    /// # Errors
    /// Files that cannot be fetched, or that cannot be used.
    pub(crate) async fn fetch(platform: &Platform, cache: &Cache, spec: &ServeSpec) -> anyhow::Result<Self> {
        let base = fetch(platform, cache, spec, (spec.base_digest, &spec.base)).await?;
        let draft = match spec.draft.as_ref().filter(|_| spec.speculation) {
            Some(draft) => Some(fetch(platform, cache, spec, (draft.base_digest, &draft.base)).await?),
            None => None,
        };
        let spec = spec.clone();
        tokio::task::spawn_blocking(move || load(&base, draft.as_ref(), &spec)).await?
    }

    /// Divides the memory for adapters, keys and values of `spec`.
    pub(crate) fn budget(&self, spec: &ServeSpec) -> BudgetParts {
        let served = ServedModels {
            draft: self.draft.as_ref().map(Decoder::architecture),
            kv_cache_dtype: spec.kv_cache_dtype,
            ..ServedModels::new(self.base.architecture(), spec.quantization, spec.compute)
        };
        served.divide(spec.memory_budget)
    }
}

async fn fetch(
    platform: &Platform,
    cache: &Cache,
    spec: &ServeSpec,
    (digest, files): (Sha256, &[RemoteFile]),
) -> Result<Files, NodeError> {
    let folder = cache.base(platform.client(), digest, files).await?;
    Ok(Files { folder, packed: cache.packed_base(digest, spec.quantization)? })
}

fn load(base: &Files, draft: Option<&Files>, spec: &ServeSpec) -> anyhow::Result<Loaded> {
    tch::set_num_threads(i32::try_from(spec.threads).unwrap_or(1).max(1));
    let text = TextModel::open(&base.folder).context("the base's tokenizer or chat template cannot be used")?;
    let decoder = |files: &Files| -> Result<Decoder, ModelError> {
        let hold = Hold::of(spec.compute);
        Decoder::load_served(&files.folder, spec.quantization, Placement::default(), &files.packed, hold)
    };
    let base = decoder(base).context("the base's weights cannot be used")?;
    let draft = draft.map(decoder).transpose().context("the draft model's weights cannot be used")?;
    Ok(Loaded { base, draft, text })
}
