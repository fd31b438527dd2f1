//! The refusal of one field of a request.

/// A value that the user gave and that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{param}: {given} is not allowed; it must be {allowed}")]
pub struct BadField {
    /// The field's path in the request: `adapter.rank`.
    pub param: &'static str,
    /// The value that was given.
    pub given: String,
    /// The values that are allowed.
    pub allowed: String,
}
