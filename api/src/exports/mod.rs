//! Exports: the adapters that they are of, and the requests of the nodes that write them.

/// The uploads and the reports of an export's process.
pub mod reports;
/// The adapter of a new export.
pub mod source;
