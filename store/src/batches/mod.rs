//! Batches and the queue of their workers.

/// Requests of a file, and their answers.
pub mod batch;
/// The workers' side of batches: who works on which, and for how long.
pub mod batch_queue;
