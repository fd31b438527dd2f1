//! The platform's address, the API key, and the HTTP client.

/// The HTTP client.
pub(crate) mod client;
/// Environment variables.
pub(crate) mod config;
/// An address and an API key.
pub(crate) mod credentials;
/// The search for an address and an API key.
pub(crate) mod find_credentials;
/// `attune login`.
pub(crate) mod login;
/// Profiles, and `attune profile`.
pub(crate) mod profiles;
