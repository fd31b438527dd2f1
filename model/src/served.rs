//! A base as it is served: how a serving process opens it, and the logits that it gives. The publish gate of a trainer asks
//! the same functions, so that it judges what will be served and not what was trained.
//!
//! Until there are kernels for packed weights, a serving process unpacks them once, in `f32`. Training unpacks the same codes
//! for the moment of their use; the numbers are the same bit for bit.

use std::path::Path;

use attune_domain::spec::Quantization;
use tch::Tensor;

use crate::{
    adapter::LoraAdapter,
    decoder::{Decoder, Step},
    error::ModelError,
    nn::kv_cache::KvCache,
};

/// How a served base holds its quantized weights. The answers are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Unpacked, once and for all: fast, and as large as a base that is not quantized.
    Unpacked,
    /// Packed, each unpacked for the moment of its use: no larger than while training.
    Packed,
}

impl Decoder {
    /// Opens a base of a Hugging Face folder to be served over `quantization`. `packed` is the file of its packed weights:
    /// see [`Decoder::load_cached`].
    ///
    /// # Errors
    /// Those of [`Decoder::load_cached`].
    pub fn load_served(
        folder: &Path,
        quantization: Quantization,
        packed: &Path,
        hold: Hold,
    ) -> Result<Self, ModelError> {
        let mut decoder = Self::load_cached(folder, quantization, Some(packed))?;
        if hold == Hold::Unpacked {
            for block in &mut decoder.blocks {
                block.unpack()?;
            }
        }
        Ok(decoder)
    }

    /// The logits `[t, v]` at every token of `sequences`, one behind the other, by the way that requests are answered: all
    /// prompts are read together into their caches, all tokens but the last of each, and then the last tokens are added.
    ///
    /// # Errors
    /// As [`Decoder::forward_cached`]; [`ModelError::Input`]: a sequence of less than two tokens.
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
