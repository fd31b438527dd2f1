//! `generation_config.json` from a GGUF file's metadata: the tokens that end an answer.
//!
//! Source: `special_eog_ids` in llama.cpp's `llama-vocab.cpp`.

use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::source::Source;

/// The keys of ends, the one of the whole text first.
const KEYS: [&str; 3] = ["eos", "eot", "eom"];

/// Tokens that end an answer by their text, whatever the keys say: many files name the end of a text alone, and their
/// templates end a turn with another token. Those of architectures that are refused are left out.
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

/// The ids of all tokens that end an answer, each once: those that keys name, then the others as they lie.
pub(crate) fn ends(source: &Source) -> Result<Vec<u64>, ImportError> {
    let tokens = source.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let mut ends = Vec::new();
    for name in KEYS {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match source.whole(&key)? {
            Some(id) if id >= tokens.len() as u64 => {
                return Err(ImportError::Unsupported(format!("the {name} token is no token of the vocabulary")));
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

/// The whole file.
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
