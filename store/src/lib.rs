//! All SQL and all object keys. One folder per aggregate; the rows are the source of truth.
//!
//! Functions take a connection and never a pool, so the caller owns the transaction; reads of users' data require the
//! user's project. Read in this order.

pub mod adapters;
pub mod batches;
/// The catalogue of instance types.
pub mod catalogue;
/// The configuration of the database and the object store.
pub mod config;

/// Errors, by how a caller can handle them.
pub mod error;

/// Digests in columns.
mod digests;

/// Connections of the pool, and how transactions begin and end.
pub mod connection;

/// The pool and the schema.
pub mod db;

/// The leader among the schedulers.
pub mod leadership;

pub mod files;

/// Counts over rows, for metrics.
pub mod gauges;

/// New IDs and secrets: the only use of the clock and the random source.
pub mod ids;
pub mod jobs;

pub mod exports;

/// Messages to the scheduler, committed or rolled back together with the rows they name.
pub mod queue;

pub mod runs;

/// Idempotency keys.
pub mod idempotency;

pub mod tenancy;
/// Row versions, for `If-Match`.
pub mod version;

/// The result of one batch of a sweep.
pub mod sweep_batch;

/// Deletion of expired rows and objects.
pub mod sweep;

/// Replicas: serving processes.
pub mod replica;

pub mod pools;

/// The state of the queue, the runs and the machines, for an organization's administrators.
pub mod status;

/// Rows for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;
pub mod webhooks;
