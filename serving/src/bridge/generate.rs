//! A request to an engine, and the parts of its answer, whichever engine it is.

use attune_domain::serve::{FinishReason, Sampling};
use serde_json::Value;

use crate::decoding::scores::TokenScore;

/// The maximum length of an engine's error message, in characters.
const MOST_MESSAGE: usize = 300;

/// A request of one answer.
pub(crate) struct Generate<'a> {
    /// The adapter's name and folder; `None`: the base.
    pub(crate) adapter: Option<(&'a str, &'a str)>,
    /// The prompt's tokens.
    pub(crate) prompt: &'a [u32],
    /// The prompt's text, for an engine that accepts no tokens.
    pub(crate) text: &'a str,
    /// The sampling parameters.
    pub(crate) sampling: &'a Sampling,
    /// The seed of this answer.
    pub(crate) seed: u64,
    /// The maximum number of tokens.
    pub(crate) max_tokens: u64,
    /// The tokens that end the answer.
    pub(crate) stop_ids: &'a [u32],
    /// The project. Prefixes are cached for each separately.
    pub(crate) project: &'a str,
    /// `true`: a row of a batch.
    pub(crate) is_batch: bool,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// A token, with its score if it was requested.
    Token {
        /// The token's ID.
        id: u32,
        /// The score.
        score: Option<TokenScore>,
    },
    /// The end.
    End(FinishReason),
}

/// Returns the message of an error: `{"error": {"message": …}}`, `{"message": …}`, `{"error": …}`, or the text.
pub(crate) fn message(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let found = ["/error/message", "/message", "/error"].iter().find_map(|path| value.pointer(path)?.as_str());
    let text = found.unwrap_or(body).trim();
    text.chars().take(MOST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_an_error_is_found_in_each_of_its_forms() {
        for body in [
            r#"{"error": {"message": "no", "code": 400}}"#,
            r#"{"object": "error", "message": "no"}"#,
            r#"{"error": "no", "error_type": "validation"}"#,
            "no\n",
        ] {
            assert_eq!(message(body), "no", "{body}");
        }
    }
}
