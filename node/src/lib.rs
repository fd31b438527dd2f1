//! What every process on a node needs, whether it trains or serves: one address, one token, a cache.
//!
//! No tensors and no database here. Read in this order.

/// What goes wrong, by what can be done about it.
mod error;

/// Says what the platform is asked and told, and reads its answers.
mod platform;

/// The node's cache of content-addressed folders.
mod cache;

/// One file: fetched, resumed, checked.
mod fetch;

/// How libtorch's threads wait for each other.
mod threads;

pub use cache::{CACHE_BYTES, Cache, Folder};
pub use error::NodeError;
pub use fetch::{fetch, sha256_of_file};
pub use platform::{Platform, http_client};
pub use threads::{let_waiting_threads_sleep, settle_for_training};

#[cfg(test)]
mod tests;
