//! The pre-tokenizers that `tokenizer.ggml.pre` names.
//!
//! A wrong pre-tokenizer results in other tokens than the model was trained with, so an unknown name is refused.
//! Source: llama.cpp's `llama-vocab.cpp` for the expression of each name; transformers' `GGUF_PRE_TOKENIZER_SPLITS` for
//! the spelling in the `tokenizers` crate. This differs from transformers 5.23, which does not know `smollm` and splits
//! with GPT-2's expression: the models' own `tokenizer.json` first splits off each digit.

use serde_json::{Value, json};

use crate::error::ImportError;

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The settings of a pre-tokenizer.
pub(crate) struct PreTokenization {
    /// The `pre_tokenizer` of `tokenizer.json`.
    pub(crate) pre_tokenizer: Value,
    /// The `normalizer`.
    pub(crate) normalizer: Value,
    /// `true`: a pre-token that is in the vocabulary becomes one token, whatever the merges are.
    pub(crate) ignore_merges: bool,
    /// The default of `add_bos_token`: a text begins with the BOS token.
    pub(crate) add_bos: bool,
}

/// Returns the settings for byte-level BPE. `name` is `tokenizer.ggml.pre`; older files have none.
pub(crate) fn pre_tokenization(name: Option<&str>, arch: &str) -> Result<PreTokenization, ImportError> {
    let plain = |pre_tokenizer| PreTokenization {
        pre_tokenizer,
        normalizer: Value::Null,
        ignore_merges: false,
        add_bos: false,
    };
    Ok(match name {
        None if arch.starts_with("qwen") => qwen(),
        None | Some("" | "default" | "gpt-2" | "gpt2" | "mpt" | "olmo" | "jais" | "phi-2") => plain(byte_level(true)),
        Some("smollm" | "starcoder" | "refact" | "codeshell" | "command-r") => {
            plain(sequence(&[json!({"type": "Digits", "individual_digits": true}), byte_level(true)]))
        }
        Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "smaug-bpe" | "dbrx") => {
            PreTokenization { ignore_merges: true, add_bos: true, ..plain(split(LLAMA3)) }
        }
        Some("qwen2" | "deepseek-r1-qwen" | "megrez") => qwen(),
        Some("tekken") => PreTokenization { ignore_merges: true, add_bos: true, ..plain(split(TEKKEN)) },
        Some(other) => {
            return Err(ImportError::Unsupported(format!(
                "the pre-tokenizer '{other}' is not known, and guessing would give the model wrong tokens; import the \
                 model's Hugging Face folder instead"
            )));
        }
    })
}

fn qwen() -> PreTokenization {
    PreTokenization {
        pre_tokenizer: split(QWEN2),
        normalizer: json!({"type": "NFC"}),
        ignore_merges: false,
        add_bos: false,
    }
}

fn split(expression: &str) -> Value {
    let split = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
    sequence(&[split, byte_level(false)])
}

fn sequence(parts: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}
