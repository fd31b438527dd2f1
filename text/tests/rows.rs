//! Rows to ids and masks, and ids back to text, with small tokenizers of the tests' own: one token per byte, and a few
//! merges.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::Path;

use attune_domain::dataset::{Message, Role, Row};
use attune_text::error::{EncodeError, TextError};
use attune_text::model::TextModel;
use attune_text::scan::{Bucket, LongestRow, scan};
use attune_text::template::Turn;
use attune_text::tokenizer::{Detokenizer, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const SPECIAL: [&str; 4] = ["<|end|>", "<|im_start|>", "<|im_end|>", "<s>"];
const END: u32 = 0;
const BOS: u32 = 3;

/// GPT-2's letter of a byte.
fn letter(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        char::from(byte)
    } else {
        let moved = (0..byte).filter(|b| !plain(*b)).count();
        char::from_u32(256 + u32::try_from(moved).unwrap()).unwrap()
    }
}

/// Byte-level BPE: the special tokens, the 256 bytes, and two newlines in one.
fn byte_level() -> Value {
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
    json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["Ċ", "Ċ"]]}})
}

/// Sentencepiece's shape: a few pieces, bytes for the rest, and `<s>` before every text.
fn sentencepiece() -> Value {
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

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// A model with the byte-level tokenizer; `config` is `tokenizer_config.json`.
fn model_with(config: &Value) -> TextModel {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &byte_level());
    write(folder.path(), "tokenizer_config.json", config);
    write(folder.path(), "generation_config.json", &json!({"eos_token_id": [0, 2]}));
    TextModel::open(folder.path()).unwrap()
}

fn chatml() -> TextModel {
    model_with(&json!({"eos_token": {"content": "<|end|>"}, "chat_template": CHATML}))
}

fn chat(messages: &[(Role, &str)]) -> Row {
    Row::Chat { messages: messages.iter().map(|(role, content)| Message::new(*role, *content)).collect() }
}

fn trained_text(model: &TextModel, row: &Row) -> Vec<String> {
    let example = model.encode_row(row).unwrap();
    assert_eq!(example.ids.len(), example.trained.len());
    let paired: Vec<_> = example.ids.into_iter().zip(example.trained).collect();
    paired
        .chunk_by(|a, b| a.1 == b.1)
        .filter(|run| run[0].1)
        .map(|run| model.tokenizer().decode_with_special(&run.iter().map(|(id, _)| *id).collect::<Vec<_>>()).unwrap())
        .collect()
}

const U: Role = Role::User;
const A: Role = Role::Assistant;

#[test]
fn answers_are_trained_with_the_end_of_their_turn() {
    let row = chat(&[(Role::System, "s"), (U, "hi"), (A, "hello"), (U, "more"), (A, "ok é")]);
    assert_eq!(trained_text(&chatml(), &row), ["hello<|im_end|>\n", "ok é<|im_end|>\n"]);
}

#[test]
fn weight_0_is_read_but_not_trained() {
    let mut row = chat(&[(U, "hi"), (A, "no"), (U, "more"), (A, "yes")]);
    if let Row::Chat { messages } = &mut row {
        messages[1].weight = Some(0);
    }
    assert_eq!(trained_text(&chatml(), &row), ["yes<|im_end|>\n"]);
}

#[test]
fn a_completion_is_trained_with_the_end_of_text() {
    let row = Row::Completion { prompt: "2+2=".into(), completion: "4".into() };
    assert_eq!(trained_text(&chatml(), &row), ["4<|end|>"]);
    let example = chatml().encode_row(&row).unwrap();
    assert_eq!(example.ids.last(), Some(&END));
    assert_eq!(example.trained_tokens(), 2);
}

#[test]
fn the_tokenizers_beginning_comes_before_a_completion_but_not_before_a_chat() {
    let config = json!({"bos_token": "<s>", "eos_token": "<|end|>", "add_bos_token": true, "chat_template": CHATML});
    let model = model_with(&config);
    assert_eq!(model.encode_prompt("a").unwrap()[0], BOS);
    let row = Row::Completion { prompt: String::new(), completion: "x".into() };
    assert_eq!(model.encode_row(&row).unwrap().trained, [false, true, true]);
    assert_ne!(model.encode_chat(&[Turn { role: "user", content: "a", name: None }]).unwrap()[0], BOS);
}

#[test]
fn an_empty_prompt_without_beginning_trains_all_but_the_first_token() {
    let row = Row::Completion { prompt: String::new(), completion: "xy".into() };
    assert_eq!(chatml().encode_row(&row).unwrap().trained_tokens(), 2);
}

#[test]
fn text_that_spells_a_special_token_is_refused_wherever_it_is() {
    let model = chatml();
    let refused = |row: &Row| model.encode_row(row).unwrap_err().to_string();
    let said = |place| {
        format!("{place} contains '<|im_end|>', which is a special token of the model; it cannot be given as text")
    };
    assert_eq!(refused(&chat(&[(U, "a<|im_end|>b"), (A, "c")])), said("messages[0].content"));
    assert_eq!(refused(&chat(&[(U, "a"), (A, "c<|im_end|>")])), said("messages[1].content"));
    let row = Row::Completion { prompt: "<|im_end|>".into(), completion: "c".into() };
    assert_eq!(refused(&row), said("prompt"));
    let row = Row::Completion { prompt: "p".into(), completion: "<|im_end|>".into() };
    assert_eq!(refused(&row), said("completion"));
    assert!(model.encode_chat(&[Turn { role: "user\n<|im_end|>", content: "", name: None }]).is_err());
    assert!(model.encode_row(&chat(&[(U, "a <|im_ end|> <| <"), (A, "c")])).is_ok());
}

#[test]
fn an_answer_that_changes_the_tokens_before_it_is_refused() {
    let refused = chatml().encode_row(&chat(&[(U, "a"), (A, "\n\nb")])).unwrap_err();
    assert!(matches!(refused, EncodeError::NotAPrefix { message: 1, .. }), "{refused}");
}

#[test]
fn an_answer_that_is_rendered_differently_later_is_refused() {
    let forgets = "{% for m in messages %}{{ m.role + ':' + (m.content if loop.last else m.content[:1]) + '\n' }}\
                   {% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": forgets}));
    let row = chat(&[(U, "a"), (A, "bbb"), (U, "c"), (A, "ddd")]);
    let refused = model.encode_row(&row).unwrap_err();
    assert!(refused.to_string().starts_with("messages[1]: the chat template renders this answer differently"));
    let mut row = row;
    if let Row::Chat { messages } = &mut row {
        messages[1].weight = Some(0);
    }
    assert_eq!(trained_text(&model, &row), ["ddd\n"]);
}

#[test]
fn a_doubled_beginning_is_refused() {
    let doubles = "{{ bos_token + bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let config = json!({"bos_token": "<s>", "eos_token": "<|end|>", "chat_template": doubles});
    let refused = model_with(&config).encode_row(&chat(&[(U, "a"), (A, "b")])).unwrap_err();
    assert_eq!(refused, EncodeError::DoubledBos("<s>".into()));
}

#[test]
fn a_template_that_drops_the_answer_trains_nothing() {
    let mute = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": mute}));
    assert_eq!(model.encode_row(&chat(&[(U, "a"), (A, "b")])).unwrap_err(), EncodeError::NothingTrained);
}

#[test]
fn without_a_template_only_completions_are_taken() {
    let model = model_with(&json!({"eos_token": "<|end|>"}));
    assert_eq!(model.encode_row(&chat(&[(U, "a"), (A, "b")])).unwrap_err(), EncodeError::NoTemplate);
    let row = Row::Completion { prompt: "a".into(), completion: "b".into() };
    assert!(model.encode_row(&row).is_ok());
    assert!(model.template_sha256().is_none());
}

#[test]
fn every_way_to_end_is_known() {
    let model = chatml();
    assert_eq!((model.eos(), model.stop_ids()), (Some(END), [0, 2].as_slice()));
    assert!(model.tokenizer().is_special(2) && !model.tokenizer().is_special(10));
}

#[test]
fn a_templates_file_wins_over_the_field_and_default_over_the_other_names() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &byte_level());
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    write(folder.path(), "tokenizer_config.json", &json!({"chat_template": named}));
    assert_eq!(TextModel::open(folder.path()).unwrap().template().unwrap().source(), "plain");
    std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(TextModel::open(folder.path()).unwrap().template().unwrap().source(), "file");
}

#[test]
fn what_is_wrong_with_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || TextModel::open(folder.path()).unwrap_err();
    assert!(matches!(refused(), TextError::Unreadable { .. }));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(refused().to_string().starts_with("tokenizer.json is not valid: "));
    write(folder.path(), "tokenizer.json", &byte_level());
    std::fs::write(folder.path().join("tokenizer_config.json"), "[").unwrap();
    assert!(refused().to_string().starts_with("tokenizer_config.json is not valid: "));
    write(folder.path(), "tokenizer_config.json", &json!({"chat_template": "{% for %}"}));
    assert!(refused().to_string().starts_with("the chat template is not valid: "));
}

#[test]
fn a_chat_of_many_answers_is_read_in_time() {
    let messages: Vec<_> =
        (0..600).map(|i| Message::new(if i % 2 == 0 { U } else { A }, "word ".repeat(100))).collect();
    let begun = std::time::Instant::now();
    let example = chatml().encode_row(&Row::Chat { messages }).unwrap();
    assert!(example.ids.len() > 300_000);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn a_tokenizers_own_truncation_is_not_obeyed() {
    let text = "far more than four tokens";
    assert_eq!(chatml().tokenizer().encode(text).unwrap().len(), text.len());
}

#[test]
fn the_prefix_is_found_in_the_tokenizer_where_the_configuration_is_silent() {
    let tokenizer = Tokenizer::from_json(sentencepiece().to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.prefix().unwrap(), [1]);
    let tokenizer = Tokenizer::from_json(byte_level().to_string().as_bytes()).unwrap();
    assert!(tokenizer.prefix().unwrap().is_empty());
}

#[test]
fn a_dataset_is_counted_and_its_defects_are_named() {
    let model = chatml();
    let short = Row::Completion { prompt: "ab".into(), completion: "c".into() };
    let long = Row::Completion { prompt: "a".repeat(20), completion: "c".into() };
    let facts = scan(&model, [(1, &short), (2, &long), (3, &short)]).unwrap();
    assert_eq!((facts.rows, facts.tokens_total, facts.trained_tokens), (3, 4 + 22 + 4, 6));
    assert_eq!(facts.longest_row, LongestRow { line: 2, tokens: 22 });
    let bars: Vec<_> = facts.histogram.iter().filter(|bar| bar.rows > 0).copied().collect();
    assert_eq!(bars, [Bucket { up_to: 4, rows: 2 }, Bucket { up_to: 32, rows: 1 }]);

    let broken = Row::Completion { prompt: "<|end|>".into(), completion: "c".into() };
    let defects = scan(&model, [(1, &short), (9, &broken)]).unwrap_err();
    assert_eq!((defects.total, defects.first[0].line), (1, 9));
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = Detokenizer::new(tokenizer);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    text.extend(stream.finish().unwrap());
    text
}

#[test]
fn half_a_character_is_held_back_until_it_is_whole() {
    let model = chatml();
    let ids = model.tokenizer().encode("é🙂").unwrap();
    let mut stream = Detokenizer::new(model.tokenizer());
    let pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    let wanted = [None, Some("é"), None, None, None, Some("🙂")];
    assert_eq!(pieces, wanted.map(|piece| piece.map(String::from)));
}

#[test]
fn bytes_that_never_become_a_character_are_given_at_the_end() {
    let model = chatml();
    let half = &model.tokenizer().encode("é").unwrap()[..1];
    assert_eq!(streamed(model.tokenizer(), half), "\u{fffd}");
}

#[test]
fn special_tokens_have_no_text() {
    assert_eq!(streamed(chatml().tokenizer(), &[1, END, 2]), "");
}

/// The mask by its definition: every prefix rendered and tokenised whole. `None` where one is no prefix.
fn mask_by_definition(model: &TextModel, messages: &[Message]) -> Option<Vec<bool>> {
    let ids = |messages: &[Message], prompt| {
        let turns: Vec<Turn<'_>> = messages.iter().map(Turn::from).collect();
        model.tokenizer().encode(&model.template().unwrap().render(&turns, prompt, None).unwrap()).unwrap()
    };
    let whole = ids(messages, false);
    let mut trained = vec![false; whole.len()];
    for i in (0..messages.len()).filter(|i| messages[*i].role == A) {
        let (before, upto) = (ids(&messages[..i], true), ids(&messages[..=i], false));
        if !whole.starts_with(&before) || !whole.starts_with(&upto) {
            return None;
        }
        trained[before.len()..upto.len()].fill(true);
    }
    Some(trained)
}

const PLAIN: &str = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

proptest! {
    /// The mask's short cut at special tokens is no other mask.
    #[test]
    fn masks_are_those_of_the_definition(
        turns in prop::collection::vec((any::<bool>(), "[ab \n<|é]{0,6}"), 1..6), template in prop::sample::select(vec![CHATML, PLAIN]),
    ) {
        let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": template}));
        let mut messages: Vec<_> =
            turns.into_iter().map(|(user, text)| Message::new(if user { U } else { A }, text)).collect();
        messages.push(Message::new(A, "x"));
        let wanted = mask_by_definition(&model, &messages);
        let found = model.encode_row(&Row::Chat { messages }).ok().map(|example| example.trained);
        prop_assert_eq!(found, wanted);
    }

    /// Streamed, a text is what it is decoded whole, whichever the tokenizer.
    #[test]
    fn a_stream_loses_nothing(text in "[ab \n🙂éx]{0,20}") {
        for json in [byte_level(), sentencepiece()] {
            let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }
}
