//! Tokens and their IDs in a model's files, compared with those of another tokenizer. No tokenizer is constructed: only
//! the vocabulary of the file is read.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// The files that name tokens, other than `tokenizer.json`.
pub const BESIDE: [&str; 3] = ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"];

/// The maximum number of tokens that a message names; the others are counted.
const MOST_NAMED: usize = 10;

/// The maximum length of a token's text in a message, in characters.
const MOST_SHOWN: usize = 60;

/// A token that a file names, and its ID if the file has it.
pub type NamedToken = (String, Option<u32>);

/// The tokens of a `tokenizer.json`, with their IDs.
#[derive(Debug)]
pub struct TokenIds(HashMap<String, u32>);

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocabulary,
}

/// A vocabulary: a map of IDs in the file, or a list of tokens with their scores.
struct Vocabulary(HashMap<String, u32>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabularyVisitor)
    }
}

struct VocabularyVisitor;

impl<'de> Visitor<'de> for VocabularyVisitor {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
        let mut ids = HashMap::new();
        while let Some((token, id)) = map.next_entry()? {
            ids.insert(token, id);
        }
        Ok(Vocabulary(ids))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
        let mut ids = HashMap::new();
        let mut id = 0;
        while let Some((token, _)) = list.next_element::<(String, IgnoredAny)>()? {
            ids.entry(token).or_insert(id);
            id += 1;
        }
        Ok(Vocabulary(ids))
    }
}

impl TokenIds {
    /// Reads the vocabulary and the added tokens of a `tokenizer.json`.
    ///
    /// # Errors
    /// The message: it is not a tokenizer.
    pub fn read(tokenizer_json: &[u8]) -> Result<Self, String> {
        let file: TokenizerFile = serde_json::from_slice(tokenizer_json).map_err(|e| e.to_string())?;
        let mut ids = file.model.vocab.0;
        ids.extend(file.added_tokens.into_iter().map(|token| (token.content, token.id)));
        Ok(Self(ids))
    }

    /// Returns all tokens, sorted by ID.
    #[must_use]
    pub fn tokens(&self) -> Vec<NamedToken> {
        let mut all: Vec<NamedToken> = self.0.iter().map(|(token, id)| (token.clone(), Some(*id))).collect();
        all.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
        all
    }

    /// Returns the first tokens in which this vocabulary differs from a base's, as a message; `None`: they are the
    /// same.
    #[must_use]
    pub fn difference(&self, base: &Self) -> Option<String> {
        let unknown = base.unknown_tokens(&self.tokens()).map(|tokens| format!("the base does not have {tokens}"));
        unknown.or_else(|| self.unknown_tokens(&base.tokens()).map(|tokens| format!("it does not have {tokens}")))
    }

    /// Lists the tokens among `named` that this tokenizer does not have, or has with another ID, as a message; `None`:
    /// it has all.
    #[must_use]
    pub fn unknown_tokens(&self, named: &[NamedToken]) -> Option<String> {
        let mut unknown = named.iter().filter_map(|(token, id)| {
            let shown: String = token.chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect();
            match (id, self.0.get(token)) {
                (Some(id), Some(known)) if id != known => Some(format!("'{shown}' ({id}, in the base {known})")),
                (_, Some(_)) => None,
                (Some(id), None) => Some(format!("'{shown}' ({id})")),
                (None, None) => Some(format!("'{shown}'")),
            }
        });
        let mut words: Vec<String> = unknown.by_ref().take(MOST_NAMED).collect();
        let more = unknown.count();
        if more > 0 {
            words.push(format!("… and {more} more"));
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// Returns the tokens that `file` names: `added_tokens.json` maps them to IDs, the other files have them in several
/// fields.
///
/// # Errors
/// The message: the file is not a JSON object, or an ID is not valid.
pub fn named_tokens(file: &str, json: &[u8]) -> Result<Vec<NamedToken>, String> {
    let fields: Map<String, Value> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    if file == "added_tokens.json" {
        let token = |(token, value): (String, Value)| match id(&value) {
            Some(id) => Ok((token, Some(id))),
            None => Err(format!("the ID of '{token}' is not a valid token ID")),
        };
        return fields.into_iter().map(token).collect();
    }
    let mut all = Vec::new();
    for (key, value) in &fields {
        match (key.as_str(), value) {
            ("added_tokens_decoder", Value::Object(decoder)) => {
                let token = |(id, token): (&String, &Value)| Some((content(token)?.to_owned(), id.parse().ok()));
                all.extend(decoder.iter().filter_map(token));
            }
            ("additional_special_tokens" | "extra_special_tokens", Value::Array(list)) => {
                all.extend(list.iter().filter_map(content).map(|token| (token.to_owned(), None)));
            }
            ("extra_special_tokens", Value::Object(map)) => {
                all.extend(map.values().filter_map(content).map(|token| (token.to_owned(), None)));
            }
            (key, value) if key.ends_with("_token") => {
                all.extend(content(value).map(|token| (token.to_owned(), None)));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// Returns the text of a token, which is a string, or an object with its `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> TokenIds {
        let file = json!({"model": {"vocab": {"a": 0, "b": 1}, "merges": []},
            "added_tokens": [{"id": 2, "content": "<|im_end|>", "special": true}]});
        TokenIds::read(file.to_string().as_bytes()).unwrap()
    }

    fn judged(file: &str, json: Value) -> Option<String> {
        base().unknown_tokens(&named_tokens(file, json.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn tokens_of_the_base_are_known_wherever_they_are_named() {
        for (file, json) in [
            ("added_tokens.json", json!({"<|im_end|>": 2})),
            ("added_tokens.json", json!({})),
            (
                "tokenizer_config.json",
                json!({"eos_token": "<|im_end|>", "pad_token": null, "add_bos_token": false,
                "added_tokens_decoder": {"2": {"content": "<|im_end|>"}}, "additional_special_tokens": ["<|im_end|>"]}),
            ),
            ("special_tokens_map.json", json!({"eos_token": {"content": "<|im_end|>", "lstrip": false}})),
        ] {
            assert_eq!(judged(file, json), None, "{file}");
        }
    }

    #[test]
    fn vocabularies_differ_in_tokens_of_either_and_in_ids() {
        let other = |vocab: Value| TokenIds::read(json!({"model": {"vocab": vocab}}).to_string().as_bytes()).unwrap();
        assert_eq!(other(json!({"<|im_end|>": 2, "b": 1, "a": 0})).difference(&base()), None);
        let difference = |vocab| other(vocab).difference(&base()).unwrap();
        assert_eq!(difference(json!({"a": 0, "b": 1, "c": 3})), "the base does not have 'c' (3)");
        assert_eq!(
            difference(json!({"a": 1, "b": 0})),
            "the base does not have 'b' (0, in the base 1), 'a' (1, in the base 0)"
        );
        assert_eq!(difference(json!({"a": 0, "b": 1})), "it does not have '<|im_end|>' (2)");
    }

    #[test]
    fn a_token_that_the_base_lacks_or_counts_otherwise_is_named() {
        for (file, json, unknown) in [
            ("added_tokens.json", json!({"<tool>": 3, "<|im_end|>": 2}), "'<tool>' (3)"),
            ("added_tokens.json", json!({"<|im_end|>": 7}), "'<|im_end|>' (7, in the base 2)"),
            ("tokenizer_config.json", json!({"added_tokens_decoder": {"3": {"content": "<tool>"}}}), "'<tool>' (3)"),
            ("tokenizer_config.json", json!({"extra_special_tokens": {"image_token": "<image>"}}), "'<image>'"),
            ("special_tokens_map.json", json!({"pad_token": "[PAD]"}), "'[PAD]'"),
            ("special_tokens_map.json", json!({"additional_special_tokens": [{"content": "<x>"}]}), "'<x>'"),
        ] {
            assert_eq!(judged(file, json).as_deref(), Some(unknown), "{file}");
        }
        assert!(named_tokens("added_tokens.json", br#"{"<tool>": "3"}"#).unwrap_err().contains("<tool>"));
        assert!(named_tokens("added_tokens.json", b"[]").is_err());
    }

    #[test]
    fn limit_strange_tokens_are_named_up_to_a_number_and_length() {
        let many: Vec<NamedToken> = (0..500).map(|i| (format!("<{i}>{}", "x\0".repeat(1000)), Some(i))).collect();
        let words = base().unknown_tokens(&many).unwrap();
        assert!(words.len() < 1000 && words.ends_with("… and 490 more") && !words.contains('\0'), "{words}");
    }

    #[test]
    fn a_vocabulary_may_be_a_list() {
        let file = json!({"model": {"vocab": [["a", 0.0], ["b", -1.5]]}});
        let list = TokenIds::read(file.to_string().as_bytes()).unwrap();
        assert_eq!(list.tokens(), [("a".to_owned(), Some(0)), ("b".to_owned(), Some(1))]);
        assert_eq!(base().unknown_tokens(&list.tokens()), None);
        assert!(TokenIds::read(b"{}").is_err());
    }
}
