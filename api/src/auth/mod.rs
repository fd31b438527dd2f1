//! Authentication and authorization of requests.

/// The bearer token of a request.
pub mod bearer;
/// Who calls.
pub mod caller;
/// The credential behind a bearer token.
pub mod credentials;
/// Where every request is let in or turned away.
pub mod guard;
/// Tokens of people, and the keys of those who sign them.
pub mod issuers;
/// Who may call what: the table.
pub mod permissions;
