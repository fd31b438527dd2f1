//! The work that an estimate is for, and the sizes that the trainer and a replica share with it.

use serde::{Deserialize, Serialize};

use crate::{architecture::Architecture, spec::TrainSpec};

/// The maximum number of tokens in a micro-batch that a plan chooses: above it, a step on a CPU takes more memory but
/// is not faster.
pub const MICRO_BATCH_TOKENS: u64 = 1024;

/// The number of trained positions that the head and the loss process at once.
pub const LOSS_CHUNK_ROWS: u64 = 512;

/// The maximum number of prompt tokens in one step of a replica, so that running answers do not wait long.
pub const PREFILL_TOKENS: u64 = 128;

/// The training workload of an estimate.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The model's architecture.
    pub architecture: &'a Architecture,
    /// The training parameters.
    pub train: &'a TrainSpec,
    /// The number of tokens of the longest row in the training and validation files.
    pub longest_row: u64,
}

impl Workload<'_> {
    /// Returns the maximum number of tokens in one forward pass. A micro-batch size that the job requests is not
    /// reduced.
    #[must_use]
    pub fn micro_batch_tokens(&self, micro_batch_size: u32) -> u64 {
        let whole = u64::from(micro_batch_size) * self.longest_row;
        if self.train.trainer.micro_batch_size.is_some() { whole } else { whole.min(MICRO_BATCH_TOKENS) }
    }
}

/// The micro-batch size, and whether activations are recomputed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSplit {
    /// The number of rows in one forward pass.
    pub micro_batch_size: u32,
    /// Gradient checkpointing: only each block's input is kept.
    pub checkpointing: bool,
}
