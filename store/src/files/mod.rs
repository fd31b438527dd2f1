//! Files, uploads, and the content in the object store.

/// Content in the object store: where to put it, when to throw it away.
pub mod blob;
/// Files that users brought.
pub mod file;
/// The object store, and the names of what lies in it.
pub mod objects;
/// Content that a project may name by its digest.
pub mod project_blob;
/// What a project has stored.
pub mod storage;
/// Files that come in parts.
pub mod upload;
