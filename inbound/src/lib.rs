//! The server loop of the HTTP servers: connections are limited in count and in time.
//!
//! A client can open connections without a key, and hold them by being slow. So connections are limited in total and
//! for each client address; the head of a request has a timeout; and a peer that stalls while it sends a body or reads
//! a response is disconnected, while one that is merely slow is not.

/// The time that a slow peer may take.
mod min_rate;

/// Request bodies, limited in the time that a slow sender may take.
mod body;

/// Sockets, limited in the time that a slow reader may take.
mod socket;

/// Connection limits, in total and per client address.
mod places;

/// The accept loop.
mod server;

/// The listener of metrics, and the measurement of requests.
mod metrics;

/// The process's limit of open file descriptors.
mod descriptors;

pub use descriptors::raise_descriptor_limit;
pub use metrics::{Publisher, measure, publish_metrics};
pub use server::{Bounds, HEAD_SECONDS, MOST_CONNECTIONS, MOST_CONNECTIONS_PER_ADDRESS, serve};

#[cfg(test)]
mod tests;
