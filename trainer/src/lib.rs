//! One process, one run, one node: fetch, train, checkpoint, publish, report.
//!
//! It knows one address and one token, holds no credential of the database or the bucket, and moves objects through
//! presigned URLs. What it is told and what it says is [`attune_domain::run`]. Read in this order.

pub mod checkpoints;
/// What it is started with.
pub mod config;

/// Losses that jump.
pub mod loss_spikes;
/// A learning rate, found.
pub mod lr_finder;
pub mod publishing;
/// The whole flow.
pub mod run;

/// The handles that all phases share.
pub mod context;

/// The files that a run reads.
pub mod inputs;

/// The state that all phases work on.
pub mod session;

pub mod data;

/// First phase: files to model, adapter, optimiser, rows.
pub mod setup;

/// The optimizer's options.
mod optimizer;

/// Second phase: optimiser steps, from the first to the last.
pub mod train;

/// One of them.
pub mod step;

/// A pass over held-out rows.
pub mod validate;

/// When more training helps no more.
pub mod early_stopping;

/// Events to the platform, stops from it.
pub mod report;

/// What the kernel says about memory.
pub mod memory;

/// Why a run ends without an adapter.
pub mod error;
