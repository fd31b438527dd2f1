//! What a stranger's `tokenizer.json` may be. The tokenizers crate does whatever the file says: a chain of replacements
//! that each make ten letters of one makes a gigabyte of a line, and a word of any length may be looked up piece by piece.

use serde::Deserialize;
use serde_json::Value;

use crate::error::TextError;

/// Bytes of a `tokenizer.json`, at most. The largest of known models have 34 MB.
pub(crate) const MAX_TOKENIZER_BYTES: usize = 48 << 20;

/// How many times longer normalizers may make a text, and decoders a token, at most.
const MAX_GROWTH: u64 = 64;

/// Characters of a word that WordPiece looks up, at most.
const MAX_WORD_CHARS: u64 = 1000;

/// Normalizers or decoders within each other, at most.
const MAX_NESTED_STEPS: usize = 16;

/// The part of the file that is looked at; the vocabulary is passed over.
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

/// Refuses a file that asks for too much.
pub(crate) fn check(json: &[u8]) -> Result<(), TextError> {
    let refused = |reason: String| Err(TextError::Invalid { file: "tokenizer.json", reason });
    if json.len() > MAX_TOKENIZER_BYTES {
        return refused(format!("it has {} bytes; {MAX_TOKENIZER_BYTES} are allowed", json.len()));
    }
    let Ok(file) = serde_json::from_slice::<Bounded>(json) else { return Ok(()) }; // the crate says it better
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

/// How many times longer a step makes a text, at most.
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
