//! Authentication and authorization of requests.

/// The bearer token of a request.
pub mod bearer;
/// The authenticated callers.
pub mod caller;
/// The credential behind a bearer token.
pub mod credentials;
/// The authentication and authorization of requests.
pub mod guard;
/// OIDC tokens of users, and the keys of their issuers.
pub mod issuers;
/// The permission that an operation requires.
pub mod permissions;
