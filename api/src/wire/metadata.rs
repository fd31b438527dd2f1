//! The metadata of a job or a batch.

use std::collections::BTreeMap;

use attune_inference::wire::metadata;

use crate::error::ApiError;

/// Checks the pairs.
///
/// # Errors
/// [`ApiError::Invalid`]: there are too many pairs, or a key or value has an invalid length or a NUL character.
pub fn check(metadata: &BTreeMap<String, String>) -> Result<(), ApiError> {
    Ok(metadata::check(metadata)?)
}
