//! `attune chat`, `attune complete` and `attune batches`.

/// `attune batches`.
pub(crate) mod batches;
/// `attune chat`.
pub(crate) mod chat;
/// `attune complete`.
pub(crate) mod complete;
/// The flags for sampling.
pub(crate) mod sampling;
