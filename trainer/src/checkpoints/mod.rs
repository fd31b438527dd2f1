//! Checkpoints: the state from which a run continues.

/// The adapter of the best validation.
pub(crate) mod best_adapter;
/// A state to go on from.
pub mod checkpoint;
/// Numbers that stay the same in a file.
pub mod exact;
/// Files that are whole together or not at all.
pub mod manifest;
/// How far a run is.
pub mod progress;
/// The state that a run begins with, or goes back to.
pub mod restore;
