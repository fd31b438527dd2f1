//! The whole model: embedding, blocks, final norm, head. This file has inference; training is in `train.rs`.
//!
//! Shapes: `t` rows of a flat batch, `c` hidden width, `v` vocabulary.

use std::path::Path;

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    placement::Placement,
    serve::KvCacheDtype,
    spec::{AdapterSpec, Quantization},
};
use tch::{Device, Kind, Tensor};

use crate::{
    adapter::LoraAdapter,
    error::ModelError,
    io::weights::{self, Weights},
    kernels::placement::{HOST, options},
    nn::{
        attention::{self, Masks},
        block::{Block, Layout, cached::CachedRows},
        head::Head,
        kv_cache::{KvCache, KvPool},
        linear::{Correction, RowGroup},
        rms_norm::{RmsNorm, at_least_float},
        rope::Rope,
        token_matrix::TokenMatrix,
    },
    quant::packed::Source,
    segments::{Segment, Segments, in_parts},
};

/// A frozen decoder. It is `Send` but not `Sync`, as libtorch's tensors are: one thread at a time uses it.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) architecture: Architecture,
    /// The embedding, `[v, c]`.
    pub(crate) embed: TokenMatrix,
    pub(crate) blocks: Vec<Block>,
    pub(crate) head: Head,
    pub(crate) rope: Rope,
}

/// One sequence's new tokens in [`Decoder::forward_cached`].
#[derive(Debug)]
pub struct Step<'a> {
    /// The tokens to add; more than one to prefill a prompt.
    pub ids: &'a [u32],
    /// The sequence's KV cache, to which the new tokens are added.
    pub cache: &'a mut KvCache,
    /// The adapter; `None`: the base model.
    pub adapter: Option<&'a LoraAdapter>,
    /// Flag to return logits after each of `ids`, not only after the last.
    pub every: bool,
}

impl Decoder {
    /// Reads a Hugging Face folder, `config.json` and `*.safetensors`, for computation at `placement`. With a
    /// quantization, the projections of the blocks are quantized one by one as they are read.
    ///
    /// # Errors
    /// Those of [`weights::architecture`], [`Weights::open`] and [`Weights::read`].
    pub fn load(folder: &Path, quantization: Quantization, placement: Placement) -> Result<Self, ModelError> {
        Self::load_cached(folder, quantization, placement, None)
    }

    /// Loads as [`Decoder::load`], with a cache file for the quantized projections: it is read if it exists and fits,
    /// else written, so that the next start is faster. The file's name must identify the base.
    ///
    /// # Errors
    /// Those of [`Decoder::load`]. A cache file that cannot be written is only logged: the decoder is complete without
    /// it.
    pub fn load_cached(
        folder: &Path,
        quantization: Quantization,
        placement: Placement,
        cache: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let weights = Weights::open(folder, &weights::architecture(folder)?)?;
        Self::load_from((folder, Source::new(&weights, quantization, cache)), placement)
    }

    /// Loads as [`Decoder::load_cached`], with the tensors that the folder has in the blocks of a GGUF file in these,
    /// unless another quantization is requested.
    pub(crate) fn load_gguf_blocks(
        folder: &Path,
        quantization: Quantization,
        placement: Placement,
        cache: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let weights = Weights::open(folder, &weights::architecture(folder)?)?;
        Self::load_from((folder, Source::new(&weights, quantization, cache).keep_blocks()), placement)
    }

    fn load_from((folder, mut source): (&Path, Source<'_>), placement: Placement) -> Result<Self, ModelError> {
        let made = Self::from_source(weights::architecture(folder)?, &mut source)?;
        if let Err(why) = source.keep() {
            tracing::warn!(%why, "cannot write the cache file of quantized weights");
        }
        let (kind, device) = options(placement);
        made.to(kind, device)
    }

    /// Reads the weights as they are in their files: in [`HOST`]'s kind and on its device.
    fn from_source(architecture: Architecture, source: &mut Source<'_>) -> Result<Self, ModelError> {
        let weights = source.weights;
        let matrix = |name| match source.blocks(name)? {
            Some(blocks) => Ok::<_, ModelError>(TokenMatrix::Blocks(blocks)),
            None => Ok(TokenMatrix::Dense(weights.read(name)?)),
        };
        let embed = matrix("model.embed_tokens.weight")?; // [v, c]
        let lm_head = if architecture.tie_word_embeddings { embed.shared() } else { matrix("lm_head.weight")? };
        let blocks = (0..usize::try_from(architecture.num_hidden_layers).unwrap_or(0))
            .map(|layer| Block::read(source, &architecture, layer))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm { weight: weights.read("model.norm.weight")?, epsilon: architecture.rms_norm_eps };
        let rope = Rope::new(&architecture, HOST.0, HOST.1)?;
        Ok(Self { architecture, embed, blocks, head: Head { norm, lm_head }, rope })
    }

    /// Returns the decoder in another kind, on another device: `Double` for exact tests, `BFloat16` on a GPU.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let embed = self.embed.to(kind, device)?;
        let tied = self.architecture.tie_word_embeddings;
        Ok(Self {
            architecture: self.architecture.clone(),
            head: self.head.to(kind, device, tied.then_some(&embed))?,
            embed,
            blocks: self.blocks.iter().map(|block| block.to(kind, device)).collect::<Result<_, _>>()?,
            rope: Rope::new(&self.architecture, at_least_float(kind), device)?,
        })
    }

    /// Creates an adapter for this base: see [`LoraAdapter::new`]. With DoRA, the magnitudes are the row norms of the
    /// base's weights.
    ///
    /// # Errors
    /// [`ModelError::AdapterConfig`], [`ModelError::Torch`].
    pub fn new_adapter(&self, spec: AdapterSpec, seed: u64) -> Result<LoraAdapter, ModelError> {
        let mut adapter = LoraAdapter::drawn(&self.architecture, spec, seed, self.options()?.1)?;
        if adapter.spec().use_dora {
            for (block, pairs) in self.blocks.iter().zip(adapter.layers_mut()) {
                for (projection, pair) in pairs.iter_mut().enumerate() {
                    let Some(pair) = pair else { continue };
                    pair.magnitude = Some(block.row_norms(projection)?.f_to_kind(Kind::Float)?);
                }
            }
        }
        Ok(adapter)
    }

    /// Returns the kind and the device of the computation.
    fn options(&self) -> Result<(Kind, Device), ModelError> {
        let like = &self.head.norm.weight;
        Ok((like.f_kind()?, like.device()))
    }

    /// Returns the architecture.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Creates a pool of `memory` for the KV caches of many sequences.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn new_pool(&self, memory: Bytes, dtype: KvCacheDtype) -> Result<KvPool, ModelError> {
        Ok(KvPool::new(&self.architecture, memory, self.options()?, dtype))
    }

    /// Creates an empty KV cache for one sequence, in a pool of its own without a limit, with memory for `capacity`
    /// tokens; it grows when needed.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn new_cache(&self, capacity: usize) -> Result<KvCache, ModelError> {
        let mut cache = self.new_pool(Bytes(u64::MAX), KvCacheDtype::Auto)?.new_cache();
        cache.grow_to(capacity)?;
        Ok(cache)
    }

    /// Adds a prompt to `cache`, after the tokens already in it, and returns the logits `[v]` after its last token.
    ///
    /// # Errors
    /// As [`Decoder::forward_cached`].
    pub fn prefill(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        adapter: Option<&LoraAdapter>,
    ) -> Result<Tensor, ModelError> {
        Ok(self.forward_cached(&mut [Step { ids, cache, adapter, every: false }])?.f_squeeze_dim(0)?)
    }

    /// Adds tokens to many sequences at once, of any lengths, with any adapters. Returns the logits `[rows, v]` after
    /// the last token of each sequence, or after every new token of those with [`Step::every`]. The frozen part of a
    /// projection is one matmul for all; each adapter's update is applied to its own rows.
    ///
    /// # Errors
    /// [`ModelError::Input`]: no step, a step without tokens, an ID outside the vocabulary, an adapter or cache of
    /// another model, a pool without free blocks. [`ModelError::Torch`]. After an error, the caches have the same
    /// tokens as before.
    pub fn forward_cached(&self, steps: &mut [Step<'_>]) -> Result<Tensor, ModelError> {
        let mut ids = Vec::new();
        let (mut positions, mut told_rows) = (Vec::new(), Vec::new());
        for step in steps.iter_mut() {
            if step.ids.is_empty() {
                return Err(ModelError::Input("a sequence without new tokens".into()));
            }
            let past = step.cache.len();
            positions.extend((past..past + step.ids.len()).map(|at| at as i64));
            let first = if step.every { ids.len() } else { ids.len() + step.ids.len() - 1 };
            ids.extend_from_slice(step.ids);
            told_rows.extend((first..ids.len()).map(|row| row as i64));
            if !step.cache.grow_to(past + step.ids.len())? {
                return Err(ModelError::Input("the pool of the KV cache has no free block".into()));
            }
        }
        let mut x = self.embed(&ids)?; // [t, c]
        let angles = self.rope.angles(&positions)?;
        let groups = adapter_rows(steps)?;
        let mut sequences =
            steps.iter_mut().map(|step| self.cached_rows(step)).collect::<Result<Vec<_>, ModelError>>()?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let groups = groups
                .iter()
                .map(|(adapter, rows)| {
                    Ok(RowGroup { correction: Correction::of(Some(adapter), layer)?, rows: rows.as_ref() })
                })
                .collect::<Result<Vec<_>, ModelError>>()?;
            x = block.forward_cached(&x, (layer, &mut sequences), &angles, &groups)?; // [t, c]
        }
        if x.size2()?.0 > told_rows.len() as i64 {
            x = x.f_index_select(0, &Tensor::f_from_slice(&told_rows)?)?; // [rows, c]
        }
        let logits = self.head.logits(&x)?; // [rows, v]
        for step in steps {
            step.cache.advance(step.ids.len());
        }
        Ok(logits)
    }

    /// Returns the logits `[t, v]` at every token of concatenated sequences, without caches.
    ///
    /// # Errors
    /// [`ModelError::Input`]: the lengths do not add up to the number of IDs, one is 0, or an ID is outside the
    /// vocabulary. [`ModelError::Torch`].
    pub fn logits(&self, ids: &[u32], lengths: &[usize], adapter: Option<&LoraAdapter>) -> Result<Tensor, ModelError> {
        if lengths.contains(&0) || lengths.iter().sum::<usize>() != ids.len() {
            let count = ids.len();
            return Err(ModelError::Input(format!("sequences of {lengths:?} tokens do not make up {count}")));
        }
        let rows = Segments::apart(&in_parts(ids, lengths));
        let layout = self.layout(&rows.segments)?;
        let mut x = self.embed(ids)?; // [t, c]
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, None, &layout, Correction::of(adapter, layer)?)?.0; // [t, c]
        }
        self.head.logits(&x)
    }

    /// Reserves memory for the largest weight and for the logits of a training step over `targets` predicted tokens.
    pub(crate) fn reserve(&self, targets: usize, correction: Correction<'_>) -> Result<(), ModelError> {
        self.head.reserve(targets as i64, self.embed.options()?)?;
        self.blocks.first().map_or(Ok(()), |block| block.reserve(correction))
    }

    /// Looks up the embeddings of IDs: `[t, c]`.
    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        if ids.is_empty() {
            return Err(ModelError::Input("a batch without tokens".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| u64::from(id) >= self.architecture.vocab_size) {
            let size = self.architecture.vocab_size;
            return Err(ModelError::Input(format!("token id {id} is outside the vocabulary of {size}")));
        }
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        self.embed.rows(&ids)
    }

    /// Computes the positions' rotary angles, and the masks, of a batch's segments.
    pub(crate) fn layout<'a>(&self, segments: &'a [Segment]) -> Result<Layout<'a>, ModelError> {
        let positions: Vec<i64> = segments
            .iter()
            .flat_map(|segment| (segment.first_position()..).take(segment.rows.len()).map(|position| position as i64))
            .collect();
        let tiles = attention::tiles(&self.head.norm.weight)?;
        let masked = if tiles.is_some() { &[] } else { segments };
        let masks = masked
            .iter()
            .map(|segment| self.masks(segment.rows.len(), segment.first_position() + segment.rows.len()))
            .collect::<Result<_, _>>()?;
        Ok(Layout { segments, tiles, masks, angles: self.rope.angles(&positions)? })
    }

    /// Computes the masks that the blocks need: one for those with a window, one for those without.
    fn masks(&self, queries: usize, keys: usize) -> Result<Masks, ModelError> {
        let options = self.options()?;
        let mask = |has_window: bool| {
            let mut attentions = self.blocks.iter().map(Block::attention);
            match attentions.find(|attention| attention.window.is_some() == has_window) {
                Some(attention) => attention.mask(queries as i64, keys as i64, options),
                None => Ok(None),
            }
        };
        Ok(Masks { full: mask(false)?, windowed: mask(true)? })
    }

    fn cached_rows<'a>(&self, step: &'a mut Step<'_>) -> Result<CachedRows<'a>, ModelError> {
        let masks = self.masks(step.ids.len(), step.cache.len() + step.ids.len())?;
        Ok(CachedRows { rows: step.ids.len() as i64, cache: &mut *step.cache, masks })
    }
}

/// Returns the distinct adapters of the steps with the indices of their rows; `None`: all rows.
fn adapter_rows<'a>(steps: &[Step<'a>]) -> Result<Vec<(&'a LoraAdapter, Option<Tensor>)>, ModelError> {
    let mut groups: Vec<(&LoraAdapter, Vec<i64>)> = Vec::new();
    let mut row = 0;
    for step in steps {
        let rows = row..row + step.ids.len() as i64;
        row = rows.end;
        let Some(adapter) = step.adapter else { continue };
        match groups.iter_mut().find(|(known, _)| std::ptr::eq(*known, adapter)) {
            Some((_, known)) => known.extend(rows),
            None => groups.push((adapter, rows.collect())),
        }
    }
    groups
        .into_iter()
        .map(|(adapter, rows)| {
            let all = rows.len() as i64 == row;
            Ok((adapter, if all { None } else { Some(Tensor::f_from_slice(&rows)?) }))
        })
        .collect()
}
