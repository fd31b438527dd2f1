//! The estimate of a run on a CUDA device: the peak of the device's memory, and that of the host's.
//!
//! This build has no CUDA placement and no GPU has run a job, so no measurement has graded these figures; they are for
//! advice on GPUs only. They assume: the computation in bf16; a base that stays as it is quantized, with the weights in
//! use unpacked to bf16; embeddings and head in bf16; factors, gradients and moments in `f32`; attention over rows of
//! several lengths that keeps no scores; a host that loads and quantizes one block after the other and keeps none.

use crate::{
    bytes::Bytes,
    memory::{
        device::{Device, PROCESS},
        estimate::{MemoryEstimate, Terms, with_percent},
        phases::{IN_FILE, phases, quantizing},
        sizes::{adapter, base, optimizer},
        work::{BatchSplit, Workload},
    },
};

/// The terms of tensors that exist once, whatever the batch is. Their sizes are known, so they need no margin, and a
/// sharded job distributes them over its GPUs.
///
/// Source of the distribution: PyTorch FSDP's `FULL_SHARD`.
const STATES: [&str; 8] =
    ["NF4 base", "int8 base", "bf16 base", "embeddings", "adapter", "gradients", "optimizer", "range test"];

/// The margin of a GPU's memory, in percent of what is not a state. It is assumed; that of the CPU is measured, and is
/// for the holes of its allocator.
const MARGIN_PERCENT: u64 = 10;

/// The blocks of a sharded base that a GPU has gathered at once: the one in use and the next.
///
/// Source: PyTorch FSDP's prefetch of one layer.
const GATHERED_BLOCKS: u64 = 2;

/// The buffers of the collectives of a sharded job on each GPU: 4 MiB (`NCCL_BUFFSIZE`) for each of 32 channels in both
/// directions.
///
/// Source: NVIDIA's documentation of NCCL's environment variables; the number of channels is assumed.
const COLLECTIVES: Bytes = Bytes::mib(4 * 32 * 2);

/// The host memory of the CUDA libraries.
///
/// Source: pytorch/pytorch#106511, 1203 MiB at the first use of CUDA; #113326 has 114 MiB with lazy loading.
const LIBRARIES: Bytes = Bytes::mib(1203);

/// The estimate of a run on one CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaEstimate {
    /// The peak of the device's memory.
    pub device: MemoryEstimate,
    /// The peak of the host's memory.
    pub host: MemoryEstimate,
    /// The base of one block.
    block: Bytes,
}

impl CudaEstimate {
    /// Estimates a training run with this split.
    pub(crate) fn of(work: Workload<'_>, split: BatchSplit) -> Self {
        Self {
            device: MemoryEstimate::highest(&phases(work, Device::Cuda, split)),
            host: MemoryEstimate::highest(&on_host(work)),
            block: block(work),
        }
    }

    /// Returns the memory that each of so many GPUs must have, over which the job is sharded if they are several: a
    /// share of the states, and everything else with the margin.
    #[must_use]
    pub fn needed(&self, gpus: u32) -> Bytes {
        let states = self.device.terms.iter().filter(|(name, _)| STATES.contains(&name.as_str()));
        let states: Bytes = states.map(|(_, bytes)| *bytes).sum();
        let rest = self.device.peak.saturating_sub(states);
        if gpus <= 1 {
            return states + with_percent(rest, MARGIN_PERCENT);
        }
        let gathered = Bytes(GATHERED_BLOCKS.saturating_mul(self.block.0));
        let whole = rest + gathered + COLLECTIVES;
        Bytes(states.0.div_ceil(gpus.into())) + with_percent(whole, MARGIN_PERCENT)
    }
}

/// Returns the bytes of one block's projections.
fn block(work: Workload<'_>) -> Bytes {
    let model = work.architecture;
    Bytes(base(model, work.train.quantization, Device::Cuda.bytes()).0 / model.num_hidden_layers.max(1))
}

/// Returns the terms of the host's phases: while the embedding is read and copied to the device, while a block is
/// quantized, and while the adapter and the moments are written to a checkpoint.
fn on_host(work: Workload<'_>) -> [Terms; 3] {
    let (model, train) = (work.architecture, work.train);
    let table = model.vocab_size * model.hidden_size;
    let always = || {
        vec![
            ("process", PROCESS),
            ("CUDA libraries", LIBRARIES),
            ("pinned buffer", pinned(table * Device::Cuda.bytes())),
        ]
    };
    let (mut reading, mut quantized, mut checkpoint) = (always(), always(), always());
    reading.push(("loading", Bytes(table * IN_FILE)));
    quantized.extend([("block", block(work)), ("loading", quantizing(model, train.quantization))]);
    checkpoint.extend([("adapter", adapter(model, train)), ("optimizer", optimizer(model, train))]);
    [reading, quantized, checkpoint]
}

/// Returns the pinned memory for a copy of so many bytes, which the allocator keeps after the copy.
///
/// Source: PyTorch's `ATen/core/CachingHostAllocator.h`, which rounds up to a power of two.
fn pinned(bytes: u64) -> Bytes {
    Bytes(bytes.checked_next_power_of_two().unwrap_or(u64::MAX))
}
