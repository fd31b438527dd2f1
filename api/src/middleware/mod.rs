//! The middleware of users' requests: rate limits, preconditions, idempotency.

/// The conditions of a request, and their check in the transaction of its change.
pub mod conditions;
/// The digest by which a repeated request is recognized.
pub mod fingerprint;
/// Idempotent requests.
pub mod idempotency;
/// The response header with the organization's name.
pub mod organization_header;
/// Preconditions: `If-Match`, `If-None-Match`, `ETag`.
pub mod preconditions;
/// The rate limits of keys, applied to requests.
pub mod rate_limit;
/// The token buckets of keys.
pub mod rate_limiter;
