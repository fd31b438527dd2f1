//! Batches and the queue of their workers.

/// Batches: the requests of a file, and their results.
pub mod batch;
/// The queue of batches for workers: claims and leases.
pub mod batch_queue;
