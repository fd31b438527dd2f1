//! A base model as a serving process loads it, and the logits of the serving path. The trainer's publish check calls
//! the same functions, so it evaluates what will be served and not the training path.
//!
//! A serving process computes from the codes of a quantized base, with activations as integers
//! ([`kernels`](crate::kernels)), or unpacks the codes once, to `f32`. Training unpacks the same codes at
//! each use, which gives the numbers of the second way, bit for bit. If a base is served as it was imported from a GGUF
//! file, the file's blocks are such codes; training over them has their numbers in `f32`.

use std::path::Path;

use attune_domain::{
    placement::{Placement, ServedCompute},
    spec::Quantization,
};
use tch::Tensor;

use crate::{
    adapter::LoraAdapter,
    decoder::{Decoder, Step},
    error::ModelError,
    nn::{block::Block, kv_cache::KvCache},
};

/// The form in which a served base keeps its quantized weights. The logits are the same in the first two. A base that
/// is not quantized is the same in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Unpacked once when loaded: fast, and as large as a base that is not quantized.
    Unpacked,
    /// Packed, and unpacked at each use: no larger than while training.
    Packed,
    /// The codes, which the products are computed from, with the embedding and the output projection in 8 bits, or in
    /// the blocks of a GGUF file: fast, and small. A weight whose rows are not whole blocks of 64 is kept as by
    /// [`Hold::Packed`].
    Codes,
}

impl Hold {
    /// Returns the form for a replica's way of computing.
    #[must_use]
    pub const fn of(compute: ServedCompute) -> Self {
        match compute {
            ServedCompute::F32 => Self::Unpacked,
            ServedCompute::Packed => Self::Codes,
        }
    }
}

impl Decoder {
    /// Loads a base from a Hugging Face folder for serving in `quantization`, at `placement`. `packed` is the cache
    /// file of its packed weights: see [`Decoder::load_cached`].
    ///
    /// # Errors
    /// Those of [`Decoder::load_cached`].
    pub fn load_served(
        folder: &Path,
        quantization: Quantization,
        placement: Placement,
        packed: &Path,
        hold: Hold,
    ) -> Result<Self, ModelError> {
        if hold == Hold::Unpacked {
            let mut decoder = Self::load_cached(folder, quantization, placement, Some(packed))?;
            decoder.blocks.iter_mut().try_for_each(Block::unpack)?;
            return Ok(decoder);
        }
        let mut decoder = Self::load_gguf_blocks(folder, quantization, placement, Some(packed))?;
        if hold == Hold::Codes && decoder.has_codes() {
            decoder.compute_from_codes()?;
        }
        Ok(decoder)
    }

    /// Returns whether some weights are kept as codes: those of a quantized base, or the blocks of a GGUF file.
    #[must_use]
    pub fn has_codes(&self) -> bool {
        self.blocks.iter().any(Block::has_codes) || self.embed.has_codes() || self.head.lm_head.has_codes()
    }

    /// Computes from the codes of the quantized weights from now on, as a base that is loaded with [`Hold::Codes`]. The
    /// embedding and the output projection are kept in their blocks, or else in 8 bits.
    ///
    /// # Errors
    /// [`ModelError::Input`]: the decoder is not in `f32` on the CPU. [`ModelError::Torch`].
    pub fn compute_from_codes(&mut self) -> Result<(), ModelError> {
        self.blocks.iter_mut().try_for_each(Block::tile)?;
        self.embed = self.embed.tiled()?;
        let tied = self.architecture.tie_word_embeddings;
        self.head.lm_head = if tied { self.embed.shared() } else { self.head.lm_head.tiled()? };
        Ok(())
    }

    /// Returns the size of the projections, the embedding and the output projection in memory, in bytes.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn weight_bytes(&self) -> Result<usize, ModelError> {
        let blocks = self.blocks.iter().map(Block::bytes).sum::<Result<usize, _>>()?;
        let head = if self.architecture.tie_word_embeddings { 0 } else { self.head.lm_head.bytes()? };
        Ok(blocks + self.embed.bytes()? + head)
    }

    /// Returns the logits `[t, v]` at every token of the concatenated `sequences`, computed by the serving path: first
    /// all tokens but the last of each sequence are prefilled together into KV caches, then the last tokens are
    /// decoded.
    ///
    /// # Errors
    /// As [`Decoder::forward_cached`]; [`ModelError::Input`]: a sequence of fewer than two tokens.
    pub fn served_logits(&self, sequences: &[Vec<u32>], adapter: Option<&LoraAdapter>) -> Result<Tensor, ModelError> {
        let caches = sequences.iter().map(|ids| self.new_cache(ids.len()));
        let mut caches = caches.collect::<Result<Vec<KvCache>, _>>()?;
        let (prompts, last): (Vec<&[u32]>, Vec<&[u32]>) =
            sequences.iter().map(|ids| ids.split_at(ids.len().saturating_sub(1))).unzip();
        let mut pass = |ids: &[&[u32]]| {
            let steps = ids.iter().zip(&mut caches);
            let mut steps: Vec<_> = steps.map(|(ids, cache)| Step { ids, cache, adapter, every: true }).collect();
            self.forward_cached(&mut steps)
        };
        let (read, added) = (pass(&prompts)?, pass(&last)?); // [t - n, v], [n, v]
        let mut in_order = Vec::with_capacity(2 * sequences.len());
        let mut at = 0;
        for (place, prompt) in prompts.iter().enumerate() {
            let length = i64::try_from(prompt.len()).unwrap_or(i64::MAX);
            in_order.push(read.f_narrow(0, at, length)?);
            in_order.push(added.f_narrow(0, i64::try_from(place).unwrap_or(i64::MAX), 1)?);
            at += length;
        }
        Ok(Tensor::f_cat(&in_order, 0)?)
    }
}
