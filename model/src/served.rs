//! A base model as a serving process loads it, and the logits of the serving path. The trainer's publish check calls
//! the same functions, so it evaluates what will be served and not the training path.
//!
//! A serving process unpacks packed weights once, to `f32`, because there are no matmul kernels for packed weights.
//! Training unpacks the same codes at each use; the numbers are the same bit for bit.

use std::path::Path;

use attune_domain::{placement::Placement, spec::Quantization};
use tch::Tensor;

use crate::{
    adapter::LoraAdapter,
    decoder::{Decoder, Step},
    error::ModelError,
    nn::kv_cache::KvCache,
};

/// The form in which a served base keeps its quantized weights. The logits are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Unpacked once when loaded: fast, and as large as a base that is not quantized.
    Unpacked,
    /// Packed, and unpacked at each use: no larger than while training.
    Packed,
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
        let mut decoder = Self::load_cached(folder, quantization, placement, Some(packed))?;
        if hold == Hold::Unpacked {
            for block in &mut decoder.blocks {
                block.unpack()?;
            }
        }
        Ok(decoder)
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
