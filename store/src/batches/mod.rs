//! Batches and the queue of their workers.

/// Batches: the requests of a file.
pub mod batch;
/// The results of a batch's requests.
pub mod batch_answer;
/// The capacity that live requests leave to batches.
pub mod batch_capacity;
/// The queue of batches for workers: claims and leases.
pub mod batch_queue;
