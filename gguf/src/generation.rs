//! The conversion of a GGUF file's metadata to `generation_config.json`: the tokens that end an answer.
//!
//! Source: `special_eog_ids` in llama.cpp's `llama-vocab.cpp`.

use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::source::Source;

/// The metadata keys of end tokens, the end of the text first.
const KEYS: [&str; 3] = ["eos", "eot", "eom"];

/// Tokens that end an answer because of their text, whatever the keys say: many files set only the end of a text, and
/// their templates end a turn with another token. Those of unsupported architectures are omitted.
const TEXTS: [&str; 14] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
];

/// Returns the IDs of all tokens that end an answer, each once: those of the keys, then the others in vocabulary order.
pub(crate) fn ends(source: &Source) -> Result<Vec<u64>, ImportError> {
    let tokens = source.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let mut ends = Vec::new();
    for name in KEYS {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match source.whole(&key)? {
            Some(id) if id >= tokens.len() as u64 => {
                return Err(ImportError::Unsupported(format!("the {name} token is not in the vocabulary")));
            }
            Some(id) if !ends.contains(&id) => ends.push(id),
            _ => {}
        }
    }
    for (id, token) in (0..).zip(&tokens) {
        if TEXTS.contains(token) && !ends.contains(&id) {
            ends.push(id);
        }
    }
    Ok(ends)
}

/// Returns the complete file.
pub(crate) fn generation_json(source: &Source) -> Result<Map<String, Value>, ImportError> {
    let mut config = Map::new();
    if let Some(bos) = source.whole("tokenizer.ggml.bos_token_id")? {
        config.insert("bos_token_id".into(), json!(bos));
    }
    match ends(source)?.as_slice() {
        [] => {}
        [id] => drop(config.insert("eos_token_id".into(), json!(id))),
        ids => drop(config.insert("eos_token_id".into(), json!(ids))),
    }
    if let Some(pad) = source.whole("tokenizer.ggml.padding_token_id")? {
        config.insert("pad_token_id".into(), json!(pad));
    }
    Ok(config)
}
