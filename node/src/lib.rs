//! Common functions of all processes on a node, trainers and serving processes: the platform's client, downloads, and a
//! cache.
//!
//! This crate has no tensors and no database. The modules are listed in reading order.

/// Errors, by the possible reaction.
mod error;

/// The client of the platform's internal API.
mod platform;

/// The node's cache of content-addressed folders.
mod cache;

/// The download of one file: fetched, resumed, checked.
mod fetch;

/// The thread and allocator settings of libtorch.
mod threads;

pub use cache::{ADAPTERS, CACHE_BYTES, Cache, Cached, Folder};
pub use error::NodeError;
pub use fetch::{fetch, sha256_of_file};
pub use platform::{Platform, http_client};
pub use threads::{let_waiting_threads_sleep, settle_for_training};

#[cfg(test)]
mod tests;
