//! The sizes of what stays in memory: the base, the adapter and the optimizer's moments.

use crate::{
    architecture::{Architecture, PROJECTIONS},
    bytes::Bytes,
    spec::{Optimizer, Quantization, TrainSpec},
};

/// The bytes of an `f32`.
pub(crate) const F32: u64 = 4;

/// The number of values of an 8-bit optimizer that share a scale.
pub const OPTIMIZER_BLOCK: u64 = 256;

/// The number of values of a factor below which an 8-bit optimizer keeps its moments in `f32`. Source: `min_8bit_size`
/// in bitsandbytes.
pub const SMALLEST_IN_8_BITS: u64 = 4096;

/// Returns the trained weights of one block, a number per tensor: the two factors of each adapted projection and, for
/// DoRA, its magnitudes, one per output.
fn block_tensors<'a>(model: &'a Architecture, train: &'a TrainSpec) -> impl Iterator<Item = u64> + 'a {
    let rank = u64::from(train.adapter.rank);
    let widths = train.adapter.target_modules.iter().filter_map(|name| model.projection(name));
    widths.flat_map(move |(outs, ins)| [outs * rank, ins * rank, if train.adapter.use_dora { outs } else { 0 }])
}

/// Returns the bytes of the trained weights, which are in `f32`, as their gradients are.
pub(crate) fn adapter(model: &Architecture, train: &TrainSpec) -> Bytes {
    Bytes(block_tensors(model, train).sum::<u64>() * model.num_hidden_layers * F32)
}

/// Estimates the two moments of each trained weight, in `f32`, or in a byte each with a scale for every block of a
/// tensor.
///
/// Source of the blocks: Dettmers et al., arXiv:2110.02861, §2.1.
pub(crate) fn optimizer(model: &Architecture, train: &TrainSpec) -> Bytes {
    let bytes = |weights: u64| match train.trainer.optimizer {
        Optimizer::Adamw8bit if weights >= SMALLEST_IN_8_BITS => weights + weights.div_ceil(OPTIMIZER_BLOCK) * F32,
        Optimizer::Adamw8bit | Optimizer::Adamw => weights * F32,
    };
    Bytes(2 * block_tensors(model, train).map(bytes).sum::<u64>() * model.num_hidden_layers)
}

/// Estimates the blocks' projections. NF4 takes 4 bits per weight and a scale per 64 weights: 32 bits, or with double
/// quantization 8 bits and a second-level scale and offset per 256 scales. Int8 takes a byte per weight and a scale per
/// output. A weight that is not quantized takes `number` bytes.
///
/// Source: Dettmers et al., arXiv:2305.14314, §3 (0.5 and 0.127 bits per weight).
pub(crate) fn base(model: &Architecture, quantization: Quantization, number: u64) -> Bytes {
    let weights = model.projection_weights();
    let thousandths_of_bits = match quantization {
        Quantization::Nf4 { double_quant: true } => 4_127,
        Quantization::Nf4 { double_quant: false } => 4_500,
        Quantization::Int8 => 8_000,
        Quantization::None => 8_000 * u128::from(number),
    };
    let scales = if quantization == Quantization::Int8 { outputs(model) * F32 } else { 0 };
    Bytes((u128::from(weights) * thousandths_of_bits / 8_000) as u64 + scales)
}

/// Estimates the blocks' projections as they were imported: those in blocks of a GGUF file as these, all others with
/// `number` bytes a weight.
pub(crate) fn as_imported(model: &Architecture, number: u64) -> Bytes {
    let kept = model.gguf_blocks.unwrap_or_default();
    let dense = model.projection_weights().saturating_sub(kept.projection_weights);
    Bytes(dense * number + kept.projection_bytes)
}

/// Returns the bytes of the embedding, and of the head if it is not tied to it, with `number` bytes a weight.
pub(crate) fn embeddings(model: &Architecture, number: u64) -> Bytes {
    Bytes(model.embedding_weights() * number)
}

/// Returns the number of outputs of all projections of all blocks.
fn outputs(model: &Architecture) -> u64 {
    let block: u64 = PROJECTIONS.iter().filter_map(|name| model.projection(name)).map(|(outs, _)| outs).sum();
    block * model.num_hidden_layers
}

/// Returns the bytes of `count` numbers of `number` bytes each for each of `tokens`. A job and a config bound each
/// factor, but not their product, so it saturates.
pub(crate) const fn per_token(tokens: u64, count: u64, number: u64) -> Bytes {
    Bytes(tokens.saturating_mul(count).saturating_mul(number))
}
