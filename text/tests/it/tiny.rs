//! Small tokenizers for the tests: one token per byte with a few merges, and one with the structure of sentencepiece.

use std::path::Path;

use attune_domain::dataset::{Message, Role, Row};
use attune_text::{model::TextModel, template::RenderSettings};
use serde_json::{Value, json};

/// The current time for templates.
pub(crate) const DAY: i64 = 1_732_838_400;
pub(crate) const AT: RenderSettings<'static> = RenderSettings::at(DAY);
pub(crate) const U: Role = Role::User;
pub(crate) const A: Role = Role::Assistant;

pub(crate) const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content \
                      + '<|im_end|>' + '\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
pub(crate) const SPECIAL: [&str; 4] = ["<|end|>", "<|im_start|>", "<|im_end|>", "<s>"];
pub(crate) const END: u32 = 0;
pub(crate) const BOS: u32 = 3;

/// Returns GPT-2's letter for a byte.
pub(crate) fn letter(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        char::from(byte)
    } else {
        let moved = (0..byte).filter(|b| !plain(*b)).count();
        char::from_u32(256 + u32::try_from(moved).unwrap()).unwrap()
    }
}

/// Returns a byte-level BPE tokenizer: the special tokens, the 256 bytes, and one merge of two newlines.
pub(crate) fn byte_level() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in SPECIAL.iter().map(|t| (*t).to_owned()).chain((0..=255).map(|b| letter(b).to_string())) {
        vocab.insert(token, json!(vocab.len()));
    }
    vocab.insert("ĊĊ".into(), json!(vocab.len()));
    let added: Vec<_> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    json!({"version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["Ċ", "Ċ"]]}})
}

/// Returns a tokenizer with the structure of sentencepiece: a few pieces, byte fallback, and `<s>` before every text.
pub(crate) fn sentencepiece() -> Value {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=255).map(|b| format!("<0x{b:02X}>"));
    for token in
        ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(["▁", "a", "b"].map(String::from))
    {
        vocab.insert(token, json!(vocab.len()));
    }
    let added = json!([{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}]);
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []}})
}

pub(crate) fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// Returns a model with the byte-level tokenizer; `config` is `tokenizer_config.json`.
pub(crate) fn model_with(config: &Value) -> TextModel {
    model_that_stops_at(config, &[0, 2])
}

/// Returns the same model with other tokens that end a turn.
pub(crate) fn model_that_stops_at(config: &Value, stop: &[u32]) -> TextModel {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &byte_level());
    write(folder.path(), "tokenizer_config.json", config);
    write(folder.path(), "generation_config.json", &json!({"eos_token_id": stop}));
    TextModel::open(folder.path()).unwrap()
}

pub(crate) fn chatml() -> TextModel {
    model_with(&json!({"eos_token": {"content": "<|end|>"}, "chat_template": CHATML}))
}

pub(crate) fn chat(messages: &[(Role, &str)]) -> Row {
    Row::chat(messages.iter().map(|(role, content)| Message::new(*role, *content)).collect())
}
