//! Connections to user-provided URLs. All connections that a user can cause the platform to open go through this crate.
//!
//! A name does not determine an address, and may resolve to another one a moment later. So a URL is first checked only
//! for its own contents ([`policy`]), and the rest is checked when the connection is opened ([`connector`]): the name
//! is resolved once, every address of the result must be public, and only such an address is connected to. Proxies are
//! not used, redirects are not followed, and no connection is reused. The modules are listed in reading order.

/// Classification of addresses that are not public.
pub mod address;

/// The policy of an installation.
pub mod policy;

/// Resolution, address check, connection.
pub mod connector;

/// The HTTP client.
pub mod client;
