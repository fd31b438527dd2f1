//! Rows as batches: token ids, the order of rows, and micro-batches.

/// Rows to what goes through the decoder.
pub(crate) mod batches;
/// Rows to tokens.
pub mod rows;
/// Which rows a step trains on.
pub mod sampler;
