//! The device memory that PyTorch's caching allocator reserves for tensors in addition to their sizes.
//!
//! Source: the constants of PyTorch's `c10/cuda/CUDACachingAllocator.cpp`, at their defaults.

use crate::{
    architecture::PROJECTIONS,
    bytes::Bytes,
    memory::{
        block::Block,
        device::Device,
        work::{BatchSplit, Workload},
    },
    spec::Quantization,
};

/// The unit of a large tensor's memory (`kRoundLarge`).
const ROUND_LARGE: u64 = 2 << 20;

/// The size from which a tensor has memory of its own; smaller ones share buffers (`kMinLargeAlloc`).
const LEAST_LARGE: u64 = 10 << 20;

/// The buffers which are not full: of tensors from 1 to 10 MiB (`kLargeBuffer`), and of smaller ones (`kSmallBuffer`).
const PARTLY_USED: Bytes = Bytes::mib(20 + 2);

/// Returns the memory that the allocator adds to the base's projections and to the activations that all blocks but one
/// keep for `tokens`, in a training with this split.
pub(crate) fn rounding(work: Workload<'_>, tokens: u64, split: BatchSplit) -> Bytes {
    let (model, number) = (work.architecture, Device::Cuda.bytes());
    let shapes = PROJECTIONS.iter().filter_map(|name| model.projection(name));
    let base: u64 = shapes.map(|(outs, ins)| added(codes(outs * ins, work.train.quantization))).sum();
    let kept = Block::of(model).kept_tensors(split.checkpointing);
    let kept: u64 = kept.iter().map(|width| added(tokens.saturating_mul(width * number))).sum();
    let blocks = model.num_hidden_layers;
    PARTLY_USED + Bytes(base.saturating_mul(blocks)) + Bytes(kept.saturating_mul(blocks.saturating_sub(1)))
}

/// Returns the bytes of a projection's weights without their scales, which are tensors of their own.
const fn codes(weights: u64, quantization: Quantization) -> u64 {
    match quantization {
        Quantization::Nf4 { .. } => weights / 2,
        Quantization::Int8 => weights,
        Quantization::None => weights * Device::Cuda.bytes(),
    }
}

/// Returns the bytes that the allocator adds to a tensor.
const fn added(bytes: u64) -> u64 {
    if bytes < LEAST_LARGE { 0 } else { bytes.div_ceil(ROUND_LARGE).saturating_mul(ROUND_LARGE).saturating_sub(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_tensor_is_rounded_up_to_2_mib_and_a_small_one_shares_a_buffer() {
        let mib = 1 << 20;
        let table = [(0, 0), (9 * mib, 0), (10 * mib, 0), (11 * mib, mib), (12 * mib + 1, 2 * mib - 1), (u64::MAX, 0)];
        for (bytes, more) in table {
            assert_eq!(added(bytes), more, "{bytes}");
        }
    }
}
