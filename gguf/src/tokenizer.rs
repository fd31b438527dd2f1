//! The conversion of a GGUF file's metadata to `tokenizer.json` and `tokenizer_config.json`: byte-level BPE (`gpt2`)
//! and SentencePiece BPE with byte fallback (`llama`).
//!
//! Source: transformers' `integrations/gguf/gguf_tokenizer_mapping.py`, `LlamaTokenizer` and `generate_merges`;
//! `enum llama_token_type` in llama.cpp's `llama.h`.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::generation::ends;
use crate::pretokenizer::{PreTokenization, pre_tokenization};
use crate::source::Source;

/// Token types. Source: `enum llama_token_type`.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The vocabulary as it is stored in the file.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<u64>,
    /// The names in `tokenizer_config.json` and the IDs of the special tokens that the file defines.
    named: Vec<(&'static str, usize)>,
    /// The IDs of tokens that end an answer.
    ends: Vec<u64>,
    add_bos: bool,
    add_eos: bool,
}

/// The contents of the two files.
pub(crate) struct TokenizerFiles {
    pub(crate) tokenizer: Value,
    pub(crate) config: Value,
    /// The number of tokens.
    pub(crate) tokens: usize,
}

/// Builds both files.
pub(crate) fn tokenizer_files(source: &Source) -> Result<TokenizerFiles, ImportError> {
    let arch = source.text("general.architecture").unwrap_or_default();
    let kind = source.text("tokenizer.ggml.model").ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let pre = match kind {
        "gpt2" => Some(pre_tokenization(source.text("tokenizer.ggml.pre"), arch)?),
        "llama" => None,
        other => {
            return Err(ImportError::Unsupported(format!(
                "the tokenizer '{other}' is not supported; allowed: gpt2 (byte-level BPE), llama (sentencepiece BPE)"
            )));
        }
    };
    let vocabulary = vocabulary(source, pre.as_ref().is_none_or(|pre| pre.add_bos))?;
    let tokenizer = match &pre {
        Some(pre) => byte_level(source, &vocabulary, pre)?,
        None => sentencepiece(source, &vocabulary)?,
    };
    let config = tokenizer_config(source, &vocabulary, arch);
    Ok(TokenizerFiles { tokenizer, config, tokens: vocabulary.tokens.len() })
}

fn vocabulary(source: &Source, add_bos: bool) -> Result<Vocabulary<'_>, ImportError> {
    let tokens = source.texts("tokenizer.ggml.tokens").ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    let kinds = source.numbers("tokenizer.ggml.token_type").unwrap_or_default();
    let mut named = Vec::new();
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(id) = source.whole(&format!("tokenizer.ggml.{key}_token_id"))? {
            let id = usize::try_from(id).ok().filter(|id| *id < tokens.len());
            named.push((
                name,
                id.ok_or_else(|| ImportError::Unsupported(format!("the {name} token is not in the vocabulary")))?,
            ));
        }
    }
    let add_bos = source.flag("tokenizer.ggml.add_bos_token").unwrap_or(add_bos);
    let add_eos = source.flag("tokenizer.ggml.add_eos_token").unwrap_or(false);
    Ok(Vocabulary { tokens, kinds, named, ends: ends(source)?, add_bos, add_eos })
}

impl Vocabulary<'_> {
    fn kind(&self, id: usize) -> u64 {
        self.kinds.get(id).copied().unwrap_or(1)
    }

    fn id(&self, name: &str) -> Option<usize> {
        self.named.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
    }

    /// Returns the added tokens. Control tokens are special; user-defined ones are only matched as a whole. A token
    /// that the file names as BOS, EOS or another end token is special whatever its type.
    fn added_tokens(&self) -> Vec<Value> {
        let ends = self.ends.iter().filter_map(|id| usize::try_from(*id).ok());
        let steering: BTreeSet<usize> = self.named.iter().map(|(_, id)| *id).chain(ends).collect();
        (0..self.tokens.len())
            .filter_map(|id| {
                let special = match self.kind(id) {
                    CONTROL | UNKNOWN => true,
                    _ if steering.contains(&id) => true,
                    USER_DEFINED => false,
                    _ => return None,
                };
                (!self.tokens[id].is_empty()).then(|| {
                    json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false, "special": special})
                })
            })
            .collect()
    }

    /// Returns the post-processor that adds BOS and EOS around a text.
    fn post_processor(&self) -> Value {
        let bos = self.id("bos").filter(|_| self.add_bos);
        let eos = self.id("eos").filter(|_| self.add_eos);
        let special = |id: usize, part: u8| json!({"SpecialToken": {"id": self.tokens[id], "type_id": part}});
        let text = |name: &str, part: u8| {
            let mut parts: Vec<Value> = bos.map(|id| special(id, part)).into_iter().collect();
            parts.push(json!({"Sequence": {"id": name, "type_id": part}}));
            parts.extend(eos.map(|id| special(id, part)));
            parts
        };
        let (single, mut pair) = (text("A", 0), text("A", 0));
        pair.extend(text("B", 1));
        let tokens: Map<String, Value> = bos
            .into_iter()
            .chain(eos)
            .map(|id| {
                let token = self.tokens[id];
                (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
            })
            .collect();
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
    }

    fn json(&self, model: Value, normalizer: &Value, pre_tokenizer: &Value, decoder: &Value) -> Value {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added_tokens(),
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": self.post_processor(),
            "decoder": decoder, "model": model})
    }
}

fn byte_level(source: &Source, vocabulary: &Vocabulary<'_>, pre: &PreTokenization) -> Result<Value, ImportError> {
    let merges = source.texts("tokenizer.ggml.merges").ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let pairs: Vec<Value> =
        merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(left, right)| json!([left, right])).collect();
    if pairs.len() != merges.len() {
        return Err(ImportError::Unsupported("a merge of the tokenizer is not a pair".into()));
    }
    let alphabet = byte_alphabet();
    let letters: BTreeSet<char> = alphabet.iter().copied().collect();
    let mut vocab = Map::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        // A control or user-defined token is matched in the raw text; any other is encoded in the byte alphabet.
        let raw = matches!(vocabulary.kind(id), CONTROL | USER_DEFINED) || token.chars().all(|c| letters.contains(&c));
        let spelt = if raw { (*token).to_owned() } else { token.bytes().map(|b| alphabet[usize::from(b)]).collect() };
        vocab.entry(spelt).or_insert(json!(id));
    }
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
        "vocab": vocab, "merges": pairs});
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok(vocabulary.json(model, &pre.normalizer, &pre.pre_tokenizer, &decoder))
}

fn sentencepiece(source: &Source, vocabulary: &Vocabulary<'_>) -> Result<Value, ImportError> {
    let merges = match source.texts("tokenizer.ggml.merges") {
        Some(merges) => merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(l, r)| json!([l, r])).collect(),
        None => {
            let scores = source.floats("tokenizer.ggml.scores").ok_or_else(|| missing("tokenizer.ggml.scores"))?;
            merges_from_scores(&vocabulary.tokens, &scores)
        }
    };
    let mut vocab = Map::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        vocab.entry(*token).or_insert(json!(id));
    }
    let unknown =
        vocabulary.id("unk").or_else(|| (0..vocabulary.tokens.len()).find(|id| vocabulary.kind(*id) == UNKNOWN));
    let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown.map(|id| vocabulary.tokens[id]),
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
        "ignore_merges": false, "vocab": vocab, "merges": merges});
    let prefixed = source.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let scheme = if prefixed { "first" } else { "never" };
    let pre = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefixed {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    Ok(vocabulary.json(model, &Value::Null, &pre, &decoder))
}

/// Returns the merges that a scored vocabulary implies: every split of a token into two tokens, best score first.
///
/// Source: `generate_merges` in transformers' `tokenization_utils_base.py`, order of ties included.
fn merges_from_scores(tokens: &[&str], scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges: Vec<(&str, &str, f64)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let mut cuts: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)))
            .collect();
        cuts.sort_by_key(|(left, right, ..)| (*left, *right));
        merges.extend(cuts.into_iter().map(|(.., left, right)| (left, right, *score)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let by_score = b.2.partial_cmp(&a.2).unwrap_or(std::cmp::Ordering::Equal);
        by_score.then_with(|| length(b.0).cmp(&length(a.0))).then_with(|| length(b.1).cmp(&length(a.1)))
    });
    merges.into_iter().map(|(left, right, _)| json!([left, right])).collect()
}

fn tokenizer_config(source: &Source, vocabulary: &Vocabulary<'_>, arch: &str) -> Value {
    let mut config = Map::new();
    config.insert("add_bos_token".into(), json!(vocabulary.add_bos && vocabulary.id("bos").is_some()));
    config.insert("add_eos_token".into(), json!(vocabulary.add_eos && vocabulary.id("eos").is_some()));
    for (name, id) in &vocabulary.named {
        config.insert(format!("{name}_token"), json!(vocabulary.tokens[*id]));
    }
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(context) = source.number(&format!("{arch}.context_length")) {
        config.insert("model_max_length".into(), json!(context));
    }
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    Value::Object(config)
}

/// Returns GPT-2's characters for the 256 bytes. Source: `bytes_to_unicode` in OpenAI's `gpt-2/src/encoder.py`.
fn byte_alphabet() -> [char; 256] {
    let mut letters = ['\0'; 256];
    let mut moved = 0x100;
    for (byte, letter) in (0_u8..=255).zip(letters.iter_mut()) {
        *letter = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            let stand_in = char::from_u32(moved).unwrap_or('\0');
            moved += 1;
            stand_in
        };
    }
    letters
}

fn missing(key: &str) -> ImportError {
    ImportError::Missing(format!("metadata '{key}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt_2s() {
        let letters = byte_alphabet();
        assert_eq!((letters[usize::from(b' ')], letters[usize::from(b'\n')], letters[0xAD]), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(letters.iter().collect::<BTreeSet<_>>().len(), 256);
    }

    #[test]
    fn merges_are_ordered_by_score_then_by_length() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc"];
        let merges = merges_from_scores(&tokens, &[0.0, 0.0, 0.0, -1.0, -2.0, -1.0]);
        assert_eq!(json!(merges), json!([["ab", "c"], ["a", "bc"], ["a", "b"], ["b", "c"]]));
    }
}
