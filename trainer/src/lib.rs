//! One process, one run, one node: fetch, train, checkpoint, publish, report.
//!
//! It knows one address and one token, holds no credential of the database or the bucket, and moves objects through
//! presigned URLs. What it is told and what it says is [`attune_domain::run`]. Read in this order.

/// What it is started with.
pub mod config;

/// The whole flow.
pub mod run;

/// First phase: files to model, adapter, optimiser, rows.
pub mod setup;

/// Rows to tokens.
pub mod data;

/// Second phase: optimiser steps, from the first to the last.
pub mod train;

/// One of them.
pub mod step;

/// Which rows a step trains on.
pub mod sampler;

/// The model card of a published folder.
mod card;

/// Rows to what goes through the decoder.
pub(crate) mod batches;

/// A pass over held-out rows.
pub mod validate;

/// When more training helps no more.
pub mod early_stopping;

/// Numbers that are none, losses that jump.
pub mod guard;

/// A learning rate, found.
pub mod range_test;

/// How far a run is.
pub mod progress;

/// A state to go on from.
pub mod checkpoint;

/// Files that are whole together or not at all.
pub mod manifest;

/// Numbers that stay the same in a file.
pub mod exact;

/// Third phase: the adapter, checked and put.
pub mod publish;

/// Files into the object store.
pub mod blobs;

/// Events to the platform, stops from it.
pub mod report;

/// What the kernel says about memory.
pub mod memory;

/// Why a run ends without an adapter.
pub mod error;
