//! Files, uploads, and the content in the object store.

/// Content in the object store: uploads and deletion.
pub mod blob;
/// Files: datasets, inputs and results.
pub mod file;
/// Content that a killed process left in the bucket.
pub(crate) mod leftovers;
/// Metrics of requests to the object store.
mod object_metrics;
/// The object store and its keys.
pub mod objects;
/// Content that a project may name by its digest.
pub mod project_blob;
/// Content on its way into the object store, before it has a row.
pub mod staging;
/// A project's storage usage.
pub mod storage;
/// Uploads: files that are uploaded in parts.
pub mod upload;
