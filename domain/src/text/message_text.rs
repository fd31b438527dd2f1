//! Users' text in messages.

/// The maximum number of a text's characters that a message repeats; a caller may send megabytes.
const TRUNCATED_CHARACTERS: usize = 80;

/// Returns the beginning of a text, for a message about it.
#[must_use]
pub fn truncated(text: &str) -> String {
    text.chars().take(TRUNCATED_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_repeats_the_beginning_of_a_text() {
        assert_eq!(truncated("short"), "short");
        assert_eq!(truncated(&"ä".repeat(1000)), "ä".repeat(80));
    }
}
