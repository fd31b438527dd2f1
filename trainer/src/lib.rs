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

/// Second phase: optimiser steps.
pub mod train;

/// Which rows a step trains on.
pub mod sampler;

/// A state to go on from.
pub mod checkpoint;

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

#[cfg(test)]
mod tests;
