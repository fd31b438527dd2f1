//! A small model and its policy, for tests.

use std::collections::BTreeMap;

use attune_domain::spec::{Method, OverLength};

use crate::{error::TextError, model::TextModel, rows::RowPolicy};

/// Returns a model with one token per word, for the words "a" and "b", and no chat template.
///
/// # Errors
/// [`TextError`]: its files are not valid.
pub fn word_model() -> Result<TextModel, TextError> {
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "post_processor": null, "decoder": null, "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<eos>": 1, "a": 2, "b": 3}, "unk_token": "<unk>"}}"#;
    TextModel::from_files(&BTreeMap::from([
        ("tokenizer.json".to_owned(), tokenizer.as_bytes().to_vec()),
        ("tokenizer_config.json".to_owned(), br#"{"eos_token": "<eos>"}"#.to_vec()),
    ]))
}

/// Returns the policy of a supervised job with at most 4 tokens per row.
#[must_use]
pub const fn word_policy(over_length: OverLength) -> RowPolicy {
    RowPolicy { method: Method::Supervised, train_on_prompt: false, over_length, max_length: 4, now: 0 }
}
