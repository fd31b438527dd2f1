//! IDs from paths, and callers' texts in messages.

use attune_domain::id::{Id, Kind};

use crate::error::ApiError;

/// The maximum number of a text's characters that a response repeats; a caller may send megabytes.
const TRUNCATED_CHARACTERS: usize = 80;

/// Parses an ID from a path. A text that is not an ID is reported like an ID that does not exist.
///
/// # Errors
/// [`ApiError::NotFound`].
pub fn parse_id<K: Kind>(id: &str) -> Result<Id<K>, ApiError> {
    id.parse().map_err(|_| ApiError::NotFound { noun: K::NOUN, name: truncated(id) })
}

/// Returns the beginning of a text, for a message about it.
pub fn truncated(text: &str) -> String {
    text.chars().take(TRUNCATED_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use attune_domain::id::Job;

    use super::*;

    #[test]
    fn what_is_no_id_names_nothing_and_is_not_repeated_whole() {
        let error = parse_id::<Job>(&"ä".repeat(1000)).unwrap_err().to_string();
        assert_eq!(error, format!("No such fine-tuning job: '{}'.", "ä".repeat(80)));
        assert!(parse_id::<Job>("ftjob-00000000000000000000000000000007").is_ok());
    }
}
