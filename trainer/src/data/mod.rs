//! Training data: token IDs, the order of rows, and micro-batches.

/// Rows to packed batches.
pub(crate) mod batches;
/// Dataset files to tokenized rows.
pub mod rows;
/// The sampler: the rows of each step.
pub mod sampler;
