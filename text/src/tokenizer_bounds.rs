//! Limits for an untrusted user's `tokenizer.json`. The tokenizers crate follows the file without limits: a chain of
//! replacements that each turn one letter into ten expands a line to a gigabyte, and WordPiece may look up every part
//! of a word of any length.

use serde::Deserialize;
use serde_json::Value;

use crate::error::TextError;

/// The maximum size of a `tokenizer.json`, in bytes. The largest of known models have 34 MB.
pub(crate) const MAX_TOKENIZER_BYTES: usize = 48 << 20;

/// The maximum factor by which normalizers may lengthen a text, and decoders a token.
const MAX_GROWTH: u64 = 64;

/// The maximum length of a word that WordPiece looks up, in characters.
const MAX_WORD_CHARS: u64 = 1000;

/// The maximum nesting depth of normalizers or decoders.
const MAX_NESTED_STEPS: usize = 16;

/// The part of the file that is checked; the vocabulary is ignored.
#[derive(Deserialize)]
struct Bounded {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Default, Deserialize)]
struct Model {
    max_input_chars_per_word: Option<u64>,
}

/// Refuses a file that exceeds the limits.
pub(crate) fn check(json: &[u8]) -> Result<(), TextError> {
    let refused = |reason: String| Err(TextError::Invalid { file: "tokenizer.json", reason });
    if json.len() > MAX_TOKENIZER_BYTES {
        return refused(format!("it has {} bytes; {MAX_TOKENIZER_BYTES} are allowed", json.len()));
    }
    let Ok(file) = serde_json::from_slice::<Bounded>(json) else { return Ok(()) }; // the crate reports a better error
    for (name, steps) in [("normalizer", &file.normalizer), ("decoder", &file.decoder)] {
        let growth = growth(steps, 0);
        if growth > MAX_GROWTH {
            return refused(format!(
                "its {name} makes a text up to {growth} times longer; {MAX_GROWTH} times is allowed"
            ));
        }
    }
    match file.model.max_input_chars_per_word {
        Some(chars) if chars > MAX_WORD_CHARS => {
            refused(format!("max_input_chars_per_word is {chars}; {MAX_WORD_CHARS} is allowed"))
        }
        _ => Ok(()),
    }
}

/// Returns the maximum factor by which a step lengthens a text.
fn growth(step: &Value, depth: usize) -> u64 {
    if depth > MAX_NESTED_STEPS {
        return u64::MAX;
    }
    let length = |value: &Value| value.as_str().map_or(0, str::len) as u64;
    match step["type"].as_str() {
        Some("Sequence") => {
            let steps = step["normalizers"].as_array().or_else(|| step["decoders"].as_array());
            steps.into_iter().flatten().fold(1, |all: u64, step| all.saturating_mul(growth(step, depth + 1)))
        }
        Some("Replace") => {
            let content = length(&step["content"]);
            match length(&step["pattern"]["String"]) {
                // A regular expression may match at each character, and between them.
                0 => content + 1,
                pattern => content.div_ceil(pattern).max(1),
            }
        }
        Some("Prepend") => length(&step["prepend"]).max(1),
        _ => 1,
    }
}
