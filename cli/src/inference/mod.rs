//! `attune chat`, `attune complete` and `attune batches`.

/// `attune batches`.
pub(crate) mod batches;
/// `attune chat`.
pub(crate) mod chat;
/// `attune complete`.
pub(crate) mod complete;
/// What a model is asked for.
pub(crate) mod sampling;
