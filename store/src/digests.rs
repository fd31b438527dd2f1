//! Digests in columns, where they are text.

use attune_domain::digest::Sha256;

use crate::error::{StoreError, named};

/// Parses a column that holds a SHA-256.
pub(crate) fn sha256(column: &'static str, text: &str) -> Result<Sha256, StoreError> {
    named(column, text, "SHA-256")
}

/// Returns the texts of these digests, for a parameter of a query.
pub(crate) fn texts(digests: &[Sha256]) -> Vec<String> {
    digests.iter().map(Sha256::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_digest_is_reported_with_its_column() {
        let digest = Sha256::from_digest([0xab; 32]);
        assert_eq!(sha256("file.sha256", &digest.to_string()).unwrap(), digest);
        assert_eq!(texts(&[digest]), ["ab".repeat(32)]);
        let error = sha256("file.sha256", "ab").unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { column: "file.sha256", .. }), "{error:?}");
    }
}
