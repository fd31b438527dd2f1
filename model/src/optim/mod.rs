//! AdamW, its moments, gradients and learning rate schedules.

pub mod gradients; // gradients of an adapter
pub(crate) mod moments; // optimizer state
pub mod optimizer; // AdamW
pub mod options; // hyperparameters
pub mod schedule; // learning rate schedules
