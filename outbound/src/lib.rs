//! The way to addresses that users give. Whatever a user makes the platform connect to goes through here.
//!
//! A name says nothing about where it leads, and may lead elsewhere a moment later. So a URL is only looked at for what
//! it says itself ([`policy`]), and the rest is decided where the connection is made ([`connector`]): the name is
//! resolved once, every address that it gives must be a public one, and just such an address is connected to. There are
//! no proxies, no redirects, and no connection is used twice. Read in this order.

/// Which addresses are nobody's to reach from here.
pub mod address;

/// What an installation lets its users reach.
pub mod policy;

/// Resolves, judges, connects.
pub mod connector;

/// Sends a request and reads the beginning of its answer.
pub mod client;
