//! The labels that a caller may put on a job or a batch. The bounds are OpenAI's.

use std::collections::BTreeMap;

use crate::error::ApiError;

/// Checks the pairs.
///
/// # Errors
/// [`ApiError::Invalid`]: too many, or one is too long.
pub fn check(metadata: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if metadata.len() > 16 {
        return Err(ApiError::invalid("metadata", "Invalid 'metadata': at most 16 pairs are kept."));
    }
    let fits = |key: &str, value: &str| {
        (1..=64).contains(&key.chars().count())
            && value.chars().count() <= 512
            && !key.contains('\0')
            && !value.contains('\0')
    };
    if metadata.iter().all(|(key, value)| fits(key, value)) {
        return Ok(());
    }
    let message = "Invalid 'metadata': a key has 1 to 64 characters, a value at most 512, and none is NUL.";
    Err(ApiError::invalid("metadata", message))
}
