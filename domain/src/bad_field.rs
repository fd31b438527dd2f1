//! The error for one invalid field of a request.

/// A field with a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{param}: {given} is not allowed; it must be {allowed}")]
pub struct BadField {
    /// The field's path in the request: `adapter.rank`.
    pub param: &'static str,
    /// The given value.
    pub given: String,
    /// The allowed values.
    pub allowed: String,
}
