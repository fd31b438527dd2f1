//! Layers that every request of a user passes: rate limits, preconditions, idempotency.

/// The digest by which a repeated request is known.
pub mod fingerprint;
/// Requests that are safe to repeat.
pub mod idempotency;
/// Whose answer it is.
pub mod organization_header;
/// `If-Match`, `If-None-Match`, `ETag`.
pub mod preconditions;
/// The rate limits of keys, applied to requests.
pub mod rate_limit;
/// Token buckets of keys.
pub mod rate_limiter;
