//! The optimizer's options, from a job's spec.

use attune_domain::spec::{Optimizer, TrainerSpec};
use attune_model::optim::options::AdamWOptions;

/// Returns PyTorch's AdamW defaults with the job's own settings.
pub(crate) fn optimizer_options(trainer: &TrainerSpec) -> AdamWOptions {
    let TrainerSpec { weight_decay, loraplus_lr_ratio, optimizer, .. } = *trainer;
    let eight_bit = optimizer == Optimizer::Adamw8bit;
    AdamWOptions { weight_decay, loraplus_lr_ratio, eight_bit, ..AdamWOptions::default() }
}
