//! The keys of a model's tokenizer: byte-level BPE (`gpt2`) and SentencePiece BPE with byte fallback (`llama`).
//!
//! Source: `get_vocab_base` and `_set_vocab_llama_hf` in llama.cpp's `convert_hf_to_gguf.py`, `SpecialVocab` in its
//! `gguf-py`. This differs from them in two points: a pre-tokenizer is recognized by its rules and not by the tokens of
//! a sample text, and a SentencePiece token has its rank among the merges as its score, so that llama.cpp merges in the
//! order of `tokenizer.json`.

use std::collections::HashMap;

use attune_text::model::TextModel;
use serde_json::Value;

use crate::export::error::{ExportError, read};
use crate::export::interface::ModelSource;
use crate::export::metadata::Metadata;
use crate::pretokenizer::pre_tokenization;

/// The names of known pre-tokenizers in GGUF.
const PRE_TOKENIZERS: [&str; 5] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"];

// Token types. Source: `enum llama_token_type` in llama.cpp's `llama.h`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The score of a SentencePiece token that no merge makes.
const NO_MERGE: f32 = -1e6;

/// The tokens by their IDs.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    ids: HashMap<String, usize>,
}

/// Sets all keys for an embedding table of `rows`.
pub(crate) fn set(metadata: &mut Metadata, source: &ModelSource<'_>, rows: u64) -> Result<(), ExportError> {
    let json = |name: &str| -> Result<Value, ExportError> {
        let path = source.folder.join(name);
        if !path.is_file() && name != "tokenizer.json" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&read(&path)?).map_err(|why| ExportError::File { path, why: why.to_string() })
    };
    let tokenizer = json("tokenizer.json")?;
    let model = &tokenizer["model"];
    if model["type"] != "BPE" {
        let kind = model["type"].as_str().unwrap_or("another type");
        return Err(unsupported(format!("a tokenizer of type {kind} has no form in GGUF; allowed: BPE")));
    }
    let is_sentencepiece = model["byte_fallback"] == true;
    let vocabulary = vocabulary(&tokenizer, usize::try_from(rows).unwrap_or(usize::MAX), is_sentencepiece)?;
    let merges = merges(model)?;
    if is_sentencepiece {
        check_sentencepiece(&tokenizer)?;
        metadata.text("tokenizer.ggml.model", "llama");
        metadata.text("tokenizer.ggml.pre", "default");
        metadata.flag("tokenizer.ggml.add_space_prefix", adds_space_prefix(&tokenizer));
        metadata.reals("tokenizer.ggml.scores", scores(&vocabulary, &merges).into_iter());
    } else {
        metadata.text("tokenizer.ggml.model", "gpt2");
        metadata.text("tokenizer.ggml.pre", pre_tokenizer(&tokenizer)?);
        let joined: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        metadata.texts("tokenizer.ggml.merges", joined.iter().map(String::as_str));
    }
    metadata.texts("tokenizer.ggml.tokens", vocabulary.tokens.iter().map(String::as_str));
    metadata.numbers("tokenizer.ggml.token_type", vocabulary.kinds.iter().copied());
    let eos = set_special(metadata, &json("tokenizer_config.json")?, &json("config.json")?, &vocabulary);
    set_end_of_turn(metadata, &json("generation_config.json")?["eos_token_id"], eos);
    let text = TextModel::open(source.folder).map_err(|why| unsupported(why.to_string()))?;
    metadata.flag("tokenizer.ggml.add_bos_token", !text.prefix().is_empty());
    metadata.flag("tokenizer.ggml.add_eos_token", false);
    if let Some(template) = source.template {
        metadata.text("tokenizer.chat_template", template);
    }
    Ok(())
}

/// Sets the ID of another token that ends an answer, if `generation_config.json` has one.
fn set_end_of_turn(metadata: &mut Metadata, ends: &Value, eos: Option<u32>) {
    let ids = ends.as_array().into_iter().flatten().filter_map(|id| u32::try_from(id.as_u64()?).ok());
    if let Some(id) = ids.into_iter().find(|id| Some(*id) != eos) {
        metadata.number("tokenizer.ggml.eot_token_id", id);
    }
}

/// Sets the IDs of special tokens: those that `tokenizer_config.json` names, or else those of `config.json`. Returns
/// the ID of the EOS token.
fn set_special(metadata: &mut Metadata, names: &Value, config: &Value, vocabulary: &Vocabulary) -> Option<u32> {
    let mut eos = None;
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let named = &names[format!("{name}_token")];
        let named = named.as_str().or_else(|| named["content"].as_str());
        let id = named.and_then(|token| vocabulary.ids.get(token).copied()).or_else(|| {
            let id = &config[format!("{name}_token_id")];
            let first = id.as_array().and_then(|list| list.first()).unwrap_or(id);
            first.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocabulary.tokens.len())
        });
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            metadata.number(&format!("tokenizer.ggml.{key}_token_id"), id);
            if name == "eos" {
                eos = Some(id);
            }
        }
    }
    eos
}

fn vocabulary(tokenizer: &Value, rows: usize, is_sentencepiece: bool) -> Result<Vocabulary, ExportError> {
    let mut ids: HashMap<String, usize> = HashMap::new();
    let place = |id: &Value| {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
        id.ok_or_else(|| unsupported(format!("a token of tokenizer.json has no row among the {rows} of the model")))
    };
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; rows];
    let unknown = tokenizer["model"]["unk_token"].as_str();
    for (token, id) in tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
        let id = place(id)?;
        kinds[id] = match token.as_str() {
            text if unknown == Some(text) => UNKNOWN,
            text if is_sentencepiece && is_byte(text) => BYTE,
            _ => NORMAL,
        };
        tokens[id].clone_from(token);
        ids.insert(token.clone(), id);
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let (id, Some(token)) = (place(&added["id"])?, added["content"].as_str()) else { continue };
        if kinds[id] != UNKNOWN {
            kinds[id] = if added["special"] == true { CONTROL } else { USER_DEFINED };
        }
        token.clone_into(&mut tokens[id]);
        ids.insert(token.to_owned(), id);
    }
    Ok(Vocabulary { tokens, kinds, ids })
}

/// Returns whether a SentencePiece token is a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && digits.chars().all(|digit| digit.is_ascii_hexdigit()))
}

/// Returns the merges in order. `tokenizer.json` has them as pairs, or in older files as texts with a space.
fn merges(model: &Value) -> Result<Vec<(String, String)>, ExportError> {
    let list = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pair = |merge: &Value| {
        let (left, right) = match merge {
            Value::String(text) => text.split_once(' ')?,
            pair => (pair[0].as_str()?, pair[1].as_str()?),
        };
        Some((left.to_owned(), right.to_owned()))
    };
    let pairs: Option<Vec<_>> = list.iter().map(pair).collect();
    pairs.ok_or_else(|| unsupported("a merge of the tokenizer is not a pair".into()))
}

/// Returns the scores: the earlier the merge that makes a token, the higher.
fn scores(vocabulary: &Vocabulary, merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: Vec<Option<usize>> = vec![None; vocabulary.tokens.len()];
    for (rank, (left, right)) in merges.iter().enumerate() {
        if let Some(id) = vocabulary.ids.get(&format!("{left}{right}")) {
            ranks[*id].get_or_insert(rank);
        }
    }
    ranks.into_iter().map(|rank| rank.map_or(NO_MERGE, |rank| -(rank as f32))).collect()
}

/// Returns whether a space is put in front of a text, as SentencePiece does.
fn adds_space_prefix(tokenizer: &Value) -> bool {
    steps(&tokenizer["normalizer"], "normalizers").iter().any(|step| step["type"] == "Prepend")
        || steps(&tokenizer["pre_tokenizer"], "pretokenizers").iter().any(|step| {
            step["type"] == "Metaspace"
                && (matches!(step["prepend_scheme"].as_str(), Some("first" | "always"))
                    || step["add_prefix_space"] == true)
        })
}

/// Checks that a SentencePiece tokenizer only replaces spaces, as llama.cpp does.
fn check_sentencepiece(tokenizer: &Value) -> Result<(), ExportError> {
    for (field, list, allowed) in [
        ("normalizer", "normalizers", &["Prepend", "Replace"][..]),
        ("pre_tokenizer", "pretokenizers", &["Metaspace"][..]),
    ] {
        for step in steps(&tokenizer[field], list) {
            let kind = step["type"].as_str();
            if kind.is_some_and(|kind| !allowed.contains(&kind)) || (kind == Some("Replace") && step["content"] != "▁")
            {
                let kind = kind.unwrap_or_default();
                return Err(unsupported(format!("the tokenizer's {field} {kind} has no form in GGUF")));
            }
        }
    }
    Ok(())
}

/// Returns the steps of a normalizer or a pre-tokenizer, of which `list` names those of a sequence.
fn steps(value: &Value, list: &str) -> Vec<Value> {
    match value[list].as_array() {
        Some(steps) => steps.clone(),
        None => vec![value.clone()],
    }
}

/// Returns GGUF's name of the pre-tokenizer with the same rules.
fn pre_tokenizer(tokenizer: &Value) -> Result<&'static str, ExportError> {
    let model = &tokenizer["model"];
    let rules = rules(&tokenizer["pre_tokenizer"]);
    let ignores_merges = model["ignore_merges"] == true;
    let normalizer = &tokenizer["normalizer"]["type"];
    let name = PRE_TOKENIZERS.into_iter().find(|name| {
        let Ok(known) = pre_tokenization(Some(name), "") else { return false };
        rules.is_some()
            && self::rules(&known.pre_tokenizer) == rules
            && known.ignore_merges == ignores_merges
            && known.normalizer["type"] == *normalizer
    });
    name.ok_or_else(|| {
        let known = PRE_TOKENIZERS.join(", ");
        unsupported(format!("the tokenizer's pre-tokenizer has no known name in GGUF; known ones: {known}"))
    })
}

/// Returns the rules of a pre-tokenizer that change tokens; `None`: it has rules that GGUF cannot express.
fn rules(pre_tokenizer: &Value) -> Option<Vec<String>> {
    steps(pre_tokenizer, "pretokenizers")
        .iter()
        .map(|step| match step["type"].as_str()? {
            "ByteLevel" if step["add_prefix_space"] != true => {
                Some(if step["use_regex"] == false { "bytes" } else { "bytes with GPT-2's expression" }.to_owned())
            }
            "Digits" if step["individual_digits"] == true => Some("digits".to_owned()),
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                step["pattern"]["Regex"].as_str().map(str::to_owned)
            }
            _ => None,
        })
        .collect()
}

fn unsupported(why: String) -> ExportError {
    ExportError::Unsupported(why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pre_tokenizer_is_known_by_its_rules() {
        for name in PRE_TOKENIZERS {
            let known = pre_tokenization(Some(name), "").unwrap();
            let tokenizer = json!({"normalizer": known.normalizer, "pre_tokenizer": known.pre_tokenizer,
                "model": {"ignore_merges": known.ignore_merges}});
            assert_eq!(pre_tokenizer(&tokenizer).unwrap(), name);
        }
        let other = json!({"normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": {}});
        assert!(pre_tokenizer(&other).unwrap_err().to_string().contains("known ones: gpt-2, "));
    }

    #[test]
    fn a_sentencepiece_tokenizer_only_replaces_spaces() {
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let llama2 = json!({"normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}});
        let metaspace = json!({"normalizer": null, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}});
        for known in [&llama2, &metaspace] {
            assert!(check_sentencepiece(known).is_ok() && adds_space_prefix(known), "{known}");
        }
        for (field, kind) in [("normalizer", "Lowercase"), ("pre_tokenizer", "Punctuation")] {
            let refused = check_sentencepiece(&json!({field: {"type": kind}})).unwrap_err().to_string();
            assert!(refused.contains(&format!("{field} {kind}")), "{refused}");
        }
    }

    #[test]
    fn types_and_scores_follow_from_the_files() {
        let tokenizer = json!({"model": {"unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "aab": 5},
            "merges": [["a", "b"], ["a", "ab"]]},
            "added_tokens": [{"id": 6, "content": "<end>", "special": true}, {"id": 0, "content": "<unk>",
                "special": true}]});
        let all = vocabulary(&tokenizer, 8, true).unwrap();
        assert_eq!(all.kinds, [UNKNOWN, BYTE, NORMAL, NORMAL, NORMAL, NORMAL, CONTROL, UNUSED]);
        assert_eq!(all.tokens[6..], ["<end>", "[PAD7]"]);
        let ranks = scores(&all, &merges(&tokenizer["model"]).unwrap());
        assert_eq!((ranks[2], ranks[4], ranks[5]), (NO_MERGE, -0.0, -1.0));
        assert!(vocabulary(&tokenizer, 5, true).is_err());
    }
}
