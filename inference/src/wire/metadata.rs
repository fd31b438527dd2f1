//! The metadata of a job, a batch or a completion. The limits are OpenAI's.

use std::collections::BTreeMap;

use crate::error::InferenceError;

/// The maximum number of pairs. Source: OpenAI's API reference.
const MOST_PAIRS: usize = 16;
/// The maximum length of a key, in characters. Source: OpenAI's API reference.
const KEY_CHARACTERS: usize = 64;
/// The maximum length of a value, in characters. Source: OpenAI's API reference.
const VALUE_CHARACTERS: usize = 512;

/// Checks the pairs.
///
/// # Errors
/// [`InferenceError::Invalid`]: there are too many pairs, or a key or value has an invalid length or a NUL character.
pub fn check(metadata: &BTreeMap<String, String>) -> Result<(), InferenceError> {
    if metadata.len() > MOST_PAIRS {
        return Err(InferenceError::invalid(
            "metadata",
            format!("Invalid 'metadata': at most {MOST_PAIRS} pairs are kept."),
        ));
    }
    let fits = |key: &str, value: &str| {
        (1..=KEY_CHARACTERS).contains(&key.chars().count())
            && value.chars().count() <= VALUE_CHARACTERS
            && !key.contains('\0')
            && !value.contains('\0')
    };
    if metadata.iter().all(|(key, value)| fits(key, value)) {
        return Ok(());
    }
    let message = format!(
        "Invalid 'metadata': a key must have 1 to {KEY_CHARACTERS} characters, a value at most {VALUE_CHARACTERS}, and \
         none may be NUL."
    );
    Err(InferenceError::invalid("metadata", message))
}
