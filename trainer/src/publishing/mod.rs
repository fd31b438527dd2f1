//! The published adapter: its files, model card and upload.

/// Files into the object store.
pub mod blobs;
/// The model card of a published folder.
pub(crate) mod card;
/// Third phase: the adapter, checked and put.
pub mod publish;
