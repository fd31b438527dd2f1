//! Compares the conversion of the quickstart's base model with transformers' conversion of the same file
//! (`testdata/make_smollm2.py`). `make setup` downloads the file into the cache; without it these tests fail.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use attune_domain::dataset::parse_row;
use attune_domain::digest::Sha256;
use attune_gguf::convert::convert;
use attune_text::encode::Learnt;
use attune_text::model::TextModel;
use attune_text::template::{RenderSettings, Turn};
use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::Digest;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Expected {
    weights: BTreeMap<String, Sha256>,
    encodings: Vec<Encoding>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: serde_json::Value,
    rendered: String,
    ids: Vec<u32>,
    trained: Vec<bool>,
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("../testdata/smollm2.json")).unwrap()
}

/// Returns a converted folder. Each test has its own: a static one would never be removed.
fn model() -> TempDir {
    #[expect(clippy::disallowed_methods, reason = "tests have no door that reads configuration")]
    let cache = std::env::var("ATTUNE_CACHE").map(PathBuf::from).unwrap_or_else(|_| {
        #[expect(clippy::disallowed_methods, reason = "tests have no door that reads configuration")]
        let home = std::env::var("HOME").unwrap();
        PathBuf::from(home).join(".cache/attune")
    });
    let gguf = cache.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(gguf.is_file(), "{} is not there; run `make setup`", gguf.display());
    let parent = tempfile::tempdir().unwrap();
    convert(&gguf, &parent.path().join("model")).unwrap();
    parent
}

#[test]
fn weights_are_bit_equal() {
    let bytes = std::fs::read(model().path().join("model/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let digest = |content: &[u8]| Sha256::from_digest(sha2::Sha256::digest(content).into());
    let found: BTreeMap<String, Sha256> =
        tensors.iter().map(|(name, tensor)| (name.to_owned(), digest(tensor.data()))).collect();
    assert_eq!(found, expected().weights);
}

#[test]
fn texts_have_the_same_tokens() {
    let text = TextModel::open(&model().path().join("model")).unwrap();
    for encoding in expected().encodings {
        assert_eq!(text.tokenizer().encode(&encoding.text).unwrap(), encoding.ids, "{:?}", encoding.text);
        assert_eq!(text.tokenizer().decode_with_special(&encoding.ids).unwrap(), encoding.decoded);
    }
}

#[test]
fn chats_have_the_same_text_tokens_and_mask() {
    let text = TextModel::open(&model().path().join("model")).unwrap();
    for chat in expected().chats {
        let row = serde_json::json!({"messages": chat.messages}).to_string();
        let row = parse_row(1, row.as_bytes()).unwrap();
        let attune_domain::dataset::Row::Chat { messages, .. } = &row else { panic!("a chat") };
        let turns: Vec<Turn<'_>> = messages.iter().map(Turn::from).collect();
        assert_eq!(text.template().unwrap().render(&turns, false, RenderSettings::at(0)).unwrap(), chat.rendered);
        let example = text.encode_row(&row, Learnt::Answers, 0).unwrap();
        assert_eq!(example.ids, chat.ids);
        assert_eq!(example.trained, chat.trained);
    }
}
