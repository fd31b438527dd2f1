//! One process, one run, one node: fetch, train, checkpoint, publish, report.
//!
//! The trainer has one URL and one token, holds no credential of the database or the bucket, and transfers objects
//! through presigned URLs. Its input and its reports are the contract [`attune_domain::run`]. The modules below are in
//! suggested reading order.

/// The command line.
pub mod config;

/// A run from its first request to its last event.
pub mod run;

/// The phases of a training.
mod train_task;

/// The phases of an export.
mod export_task;

/// The thread of a task's tensor operations.
mod tensor_thread;

/// The handles that all phases share.
pub mod context;

/// The files that a run reads.
pub mod inputs;

/// The state that all phases work on.
pub mod session;

pub mod data;

pub mod objective;

/// First phase: loads the model, the adapter, the optimizer and the rows.
pub mod setup;

/// The optimizer's options.
mod optimizer;

/// Second phase: optimizer steps with validations and checkpoints.
pub mod train;

/// One optimizer step.
pub mod step;

/// The LR range test.
pub mod lr_finder;

/// A pass over held-out rows.
pub mod validate;

/// Early stopping.
pub mod early_stopping;

/// Detection of training-loss spikes.
pub mod loss_spikes;

pub mod checkpoints;

pub mod publishing;

/// Exports of adapters.
mod exporting;

/// The reporter: sends events to the platform and receives stop requests.
pub mod report;

/// The processor that a run trains on.
mod processor;

/// The process's and the machine's memory, from `/proc`.
pub mod memory;

/// The errors that end a run without an adapter.
pub mod error;
