//! What a caller gave, read as an id or shown back in an answer.

use attune_domain::id::{Id, Kind};

use crate::error::ApiError;

/// As much of a text as an answer repeats; a caller may give megabytes.
const SHOWN_CHARACTERS: usize = 80;

/// The id that stands in a path. What is not an id names nothing, and is answered as an id that nobody has.
///
/// # Errors
/// [`ApiError::NotFound`].
pub fn named<K: Kind>(id: &str) -> Result<Id<K>, ApiError> {
    id.parse().map_err(|_| ApiError::NotFound { noun: K::NOUN, name: shown(id) })
}

/// The beginning of a text, for a message about it.
pub fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use attune_domain::id::Job;

    use super::*;

    #[test]
    fn what_is_no_id_names_nothing_and_is_not_repeated_whole() {
        let error = named::<Job>(&"ä".repeat(1000)).unwrap_err().to_string();
        assert_eq!(error, format!("No such fine-tuning job: '{}'.", "ä".repeat(80)));
        assert!(named::<Job>("ftjob-00000000000000000000000000000007").is_ok());
    }
}
