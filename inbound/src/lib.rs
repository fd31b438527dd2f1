//! The server loop of the HTTP doors: connections bounded in count and in time.
//!
//! A caller that needs no key can open connections, and keep them by being slow. So connections have a bound, in all and
//! for each client address; the head of a request has a time; and a peer whose body or whose reading stands still is cut
//! off, while one that is merely slow is not.

/// The time that a slow peer may take.
mod pace;

/// The bodies of requests, as slow as [`pace`] allows.
mod body;

/// Sockets whose reader may be as slow as [`pace`] allows.
mod socket;

/// Places for connections.
mod places;

/// The loop.
mod server;

/// Descriptors of the process.
mod descriptors;

pub use descriptors::raise_descriptor_limit;
pub use server::{Bounds, HEAD_SECONDS, MOST_CONNECTIONS, MOST_CONNECTIONS_PER_ADDRESS, serve};

#[cfg(test)]
mod tests;
