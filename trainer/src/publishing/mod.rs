//! The published adapter: its files, model card and upload.

/// Uploads to the object store.
pub mod blobs;
/// The model card of a published folder.
pub(crate) mod card;
/// Third phase: writes, checks and uploads the adapter.
pub mod publish;
