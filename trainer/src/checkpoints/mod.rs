//! Checkpoints: the state from which a run continues.

/// The adapter with the lowest validation loss.
pub(crate) mod best_adapter;
/// Saving and loading of checkpoints.
pub mod checkpoint;
/// Floats that round-trip exactly through JSON.
pub mod exact;
/// The manifest that makes a folder of files atomic.
pub mod manifest;
/// The progress of a run.
pub mod progress;
/// Restoring the state that a run starts from or rolls back to.
pub mod restore;
/// A job's spec in the form that a checkpoint's digest is computed over.
mod spec_text;
