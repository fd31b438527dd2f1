//! Estimates of the peak memory of a run or a replica, term by term, before it starts. Pure arithmetic over the model's
//! shape. `make memory-report` trains models of many shapes and compares; `run.measured_peak` and `run.predicted_peak`
//! in the database compare for each run.
//!
//! A peak is the maximum over the phases of a run (`phases.rs`), and each phase is the sum of its terms: what stays
//! (`sizes.rs`), and what a block of the decoder has in memory at one point of its backward pass (`block.rs`). The CPU
//! and CUDA share these phases; `device.rs` has what differs. No GPU has graded the estimate for CUDA (`cuda.rs`).
//! Activations and unpacked weights are of the device's number type; an adapter, its gradients and its optimizer are in
//! `f32`. Places are chosen for the peak with a margin ([`with_margin`](crate::memory::with_margin)); the estimate
//! itself has none.

use crate::{
    bytes::Bytes,
    memory::{device::Device, phases::phases},
    placement::Placement,
    run::Plan,
};

mod allocator;
mod block;
mod cuda;
#[cfg(test)]
mod cuda_tests;
mod device;
mod estimate;
mod exporting;
mod gate;
/// The next attempt after a run that ran out of memory.
pub mod ladder;
mod margin;
mod phases;
mod replica;
mod sizes;
#[cfg(test)]
mod tests;
mod work;

pub use self::{
    cuda::CudaEstimate,
    estimate::{MARGIN_PERCENT, MemoryEstimate, with_margin},
    exporting::exporting,
    gate::GATE_PROMPTS,
    margin::{MARGIN_RUNS, Margin, MarginSource},
    replica::{BudgetParts, SERVED_BLOCK, ServedModels, serving},
    sizes::{OPTIMIZER_BLOCK, SMALLEST_IN_8_BITS},
    work::{BatchSplit, LOSS_CHUNK_ROWS, MICRO_BATCH_TOKENS, PREFILL_TOKENS, Workload},
};

/// Estimates the peak of a training run: that of its phase with the highest peak.
#[must_use]
pub fn training(work: Workload<'_>, placement: Placement, split: BatchSplit) -> MemoryEstimate {
    MemoryEstimate::highest(&phases(work, Device::Cpu(placement.compute), split))
}

/// Estimates the peak of a training run with a given plan.
#[must_use]
pub fn with_plan(work: Workload<'_>, plan: &Plan) -> MemoryEstimate {
    let Plan { micro_batch_size, checkpointing, placement, .. } = *plan;
    training(work, placement, BatchSplit { micro_batch_size, checkpointing })
}

/// Chooses the fastest split of the batch that fits into `limit` with the default margin: the largest micro-batch, and
/// for each size no checkpointing before checkpointing. Sizes that the job requests are kept; the rows of a step never
/// change. For an offer with another margin, the limit is its [`Margin::room`].
/// Every offer is a machine's processor, so a new plan has the default placement.
///
/// # Errors
/// The estimate of the smallest split, if even that does not fit.
pub fn plan(work: Workload<'_>, limit: Bytes, threads: u32) -> Result<(Plan, MemoryEstimate), MemoryEstimate> {
    let placement = Placement::default();
    for split in splits(work) {
        let estimate = training(work, placement, split);
        if estimate.needed() <= limit {
            let BatchSplit { micro_batch_size, checkpointing } = split;
            let predicted_peak = estimate.peak;
            let micro_batch_tokens = work.micro_batch_tokens(micro_batch_size);
            return Ok((
                Plan { micro_batch_size, micro_batch_tokens, checkpointing, threads, predicted_peak, placement },
                estimate,
            ));
        }
    }
    Err(smallest(work))
}

/// Estimates the smallest split: one row at a time, with checkpointing, unless the job requests otherwise.
#[must_use]
pub fn smallest(work: Workload<'_>) -> MemoryEstimate {
    training(work, Placement::default(), smallest_split(work))
}

/// Estimates the smallest split on a CUDA device, which this build cannot use: for advice on GPUs.
#[must_use]
pub fn smallest_on_cuda(work: Workload<'_>) -> CudaEstimate {
    CudaEstimate::of(work, smallest_split(work))
}

/// Returns the split that takes the least memory, of those that the job allows.
fn smallest_split(work: Workload<'_>) -> BatchSplit {
    let micro_batch_size = work.train.trainer.micro_batch_size.unwrap_or(1);
    let checkpointing = work.train.trainer.gradient_checkpointing.unwrap_or(true);
    BatchSplit { micro_batch_size, checkpointing }
}

/// Returns the largest micro-batch that a plan chooses without a request.
#[must_use]
pub fn largest_micro_batch(work: Workload<'_>) -> u32 {
    let rows =
        (MICRO_BATCH_TOKENS / work.longest_row.max(1)).clamp(1, u64::from(work.train.hyperparameters.batch_size));
    u32::try_from(rows).unwrap_or(1)
}

/// Returns all splits that the job allows, fastest first.
fn splits(work: Workload<'_>) -> impl Iterator<Item = BatchSplit> {
    let asked = work.train.trainer.micro_batch_size;
    let largest = asked.unwrap_or_else(|| largest_micro_batch(work));
    let ways: &[bool] = match work.train.trainer.gradient_checkpointing {
        None => &[false, true],
        Some(false) => &[false],
        Some(true) => &[true],
    };
    std::iter::successors(Some(largest), move |rows| (*rows > 1 && asked.is_none()).then_some(rows / 2)).flat_map(
        |micro_batch_size| ways.iter().map(move |&checkpointing| BatchSplit { micro_batch_size, checkpointing }),
    )
}
