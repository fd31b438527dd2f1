//! IDs from paths, and callers' texts in messages.

pub use attune_domain::text::message_text::truncated;

use attune_domain::id::{Id, Kind};

use crate::error::ApiError;

/// Parses an ID from a path. A text that is not an ID is reported like an ID that does not exist.
///
/// # Errors
/// [`ApiError::NotFound`].
pub fn parse_id<K: Kind>(id: &str) -> Result<Id<K>, ApiError> {
    id.parse().map_err(|_| ApiError::NotFound { noun: K::NOUN, name: truncated(id) })
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
