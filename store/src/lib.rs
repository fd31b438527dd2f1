//! All SQL and all object keys. One file per aggregate; the rows are the truth.
//!
//! Functions take a connection and never a pool, so the caller owns the transaction; reads of what a user made ask for
//! the user's project. Read in this order.

pub mod adapters;
pub mod batches;
/// Where the database and the object store are.
pub mod config;

/// What can go wrong, by what a caller can do about it.
pub mod error;

/// Connections of the pool, and how transactions begin and end.
pub mod connection;

/// The pool, the schema, the advisory lock.
pub mod db;

pub mod files;
pub mod jobs;
/// New ids and new secrets: the clock and the dice live here.
pub mod mint;

/// Messages to the scheduler, kept or lost together with the rows they name.
pub mod queue;

pub mod runs;

/// Requests that are safe to repeat.
pub mod idempotency;

pub mod tenancy;
/// Versions of rows, for changes that must not be lost.
pub mod version;

/// The outcome of one batch of a sweep.
pub mod sweep_batch;

/// Clears up what is over.
pub mod sweep;

/// Serving processes.
pub mod replica;

/// Rows for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;
pub mod webhooks;
