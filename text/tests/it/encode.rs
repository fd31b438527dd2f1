//! Encoding of rows to IDs and masks, and decoding of IDs to text.

use std::collections::BTreeMap;

use attune_domain::dataset::{Message, Role, Row};
use attune_text::detokenizer::Detokenizer;
use attune_text::encode::Learnt;
use attune_text::error::{EncodeError, TextError};
use attune_text::model::TextModel;
use attune_text::template::Turn;
use attune_text::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::json;

use crate::tiny::{
    A, AT, BOS, CHATML, DAY, END, U, byte_level, chat, chatml, model_that_stops_at, model_with, sentencepiece, write,
};

fn trained_text(model: &TextModel, row: &Row) -> Vec<String> {
    trained_text_of(model, row, Learnt::Answers)
}

fn trained_text_of(model: &TextModel, row: &Row, learnt: Learnt) -> Vec<String> {
    let example = model.encode_row(row, learnt, DAY).unwrap();
    assert_eq!(example.ids.len(), example.trained.len());
    let paired: Vec<_> = example.ids.into_iter().zip(example.trained).collect();
    paired
        .chunk_by(|a, b| a.1 == b.1)
        .filter(|run| run[0].1)
        .map(|run| model.tokenizer().decode_with_special(&run.iter().map(|(id, _)| *id).collect::<Vec<_>>()).unwrap())
        .collect()
}

#[test]
fn answers_are_trained_with_the_end_of_their_turn() {
    let row = chat(&[(Role::System, "s"), (U, "hi"), (A, "hello"), (U, "more"), (A, "ok é")]);
    assert_eq!(trained_text(&chatml(), &row), ["hello<|im_end|>\n", "ok é<|im_end|>\n"]);
}

#[test]
fn weight_0_is_read_but_not_trained() {
    let mut row = chat(&[(U, "hi"), (A, "no"), (U, "more"), (A, "yes")]);
    if let Row::Chat { messages, .. } = &mut row {
        messages[1].weight = Some(0);
    }
    assert_eq!(trained_text(&chatml(), &row), ["yes<|im_end|>\n"]);
}

#[test]
fn trained_on_the_prompt_all_is_trained_but_the_first_token_and_what_has_weight_0() {
    let mut row = chat(&[(U, "hi"), (A, "no"), (U, "more"), (A, "yes")]);
    let whole = "user\nhi<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n\
                 <|im_start|>assistant\nyes<|im_end|>\n";
    assert_eq!(trained_text_of(&chatml(), &row, Learnt::All), [whole]);
    if let Row::Chat { messages, .. } = &mut row {
        messages[1].weight = Some(0);
    }
    let (before, after) = whole.split_once("no<|im_end|>\n").unwrap();
    assert_eq!(trained_text_of(&chatml(), &row, Learnt::All), [before, after]);
    let row = Row::Completion { prompt: "2+2=".into(), completion: "4".into() };
    assert_eq!(trained_text_of(&chatml(), &row, Learnt::All), ["+2=4<|end|>"]);
}

#[test]
fn a_text_is_trained_from_its_second_token_to_the_end_of_text() {
    let row = Row::Text { text: "once".into() };
    let model = chatml();
    assert_eq!(trained_text(&model, &row), ["nce<|end|>"]);
    assert_eq!(model.encode_row(&row, Learnt::Answers, DAY).unwrap().ids.len(), 5);
    let model = model_with(&json!({"bos_token": "<s>", "eos_token": "<|end|>", "add_bos_token": true}));
    assert_eq!(model.encode_row(&row, Learnt::Answers, DAY).unwrap().ids[0], BOS);
    assert_eq!(trained_text(&model, &row), ["once<|end|>"]);
}

#[test]
fn an_answer_that_is_never_ended_is_refused() {
    let endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
                   {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": endless}));
    let row = chat(&[(U, "a"), (A, "b"), (U, "c"), (A, "d")]);
    let refused = model.encode_row(&row, Learnt::Answers, DAY).unwrap_err().to_string();
    assert!(refused.starts_with("messages[1]: the chat template puts no token that ends a turn after"), "{refused}");
    assert!(refused.contains("the model knows <|end|>, <|im_end|>") && refused.contains("never learn to stop"));
    assert!(matches!(model.encode_row(&row, Learnt::All, DAY), Err(EncodeError::Endless { message: 3, .. })));

    // Only the end of the chat has a stop token: the first answer would be trained without one.
    let last = "{% for m in messages %}{{ m.role + ': ' + m.content }}{{ eos_token if loop.last else '\n' }}\
                {% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": last}));
    assert!(
        model.encode_row(&chat(&[(U, "a"), (A, "b")]), Learnt::Answers, DAY).is_err(),
        "the prompt ends in one, too"
    );
    let turns = "{% for m in messages %}{{ m.role + ': ' + m.content }}\
                 {{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}\
                 {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": turns}));
    assert_eq!(trained_text(&model, &row), ["b<|end|>", "d<|end|>"]);
}

#[test]
fn a_completion_is_trained_with_the_end_of_text() {
    let row = Row::Completion { prompt: "2+2=".into(), completion: "4".into() };
    assert_eq!(trained_text(&chatml(), &row), ["4<|end|>"]);
    let example = chatml().encode_row(&row, Learnt::Answers, DAY).unwrap();
    assert_eq!(example.ids.last(), Some(&END));
    assert_eq!(example.trained_tokens(), 2);
}

#[test]
fn the_tokenizers_beginning_comes_before_a_completion_but_not_before_a_chat() {
    let config = json!({"bos_token": "<s>", "eos_token": "<|end|>", "add_bos_token": true, "chat_template": CHATML});
    let model = model_with(&config);
    assert_eq!(model.encode_prompt("a").unwrap()[0], BOS);
    let row = Row::Completion { prompt: String::new(), completion: "x".into() };
    assert_eq!(model.encode_row(&row, Learnt::Answers, DAY).unwrap().trained, [false, true, true]);
    assert_ne!(model.encode_chat(&[Turn::new("user", "a")], AT).unwrap()[0], BOS);
}

#[test]
fn an_empty_prompt_without_beginning_trains_all_but_the_first_token() {
    let row = Row::Completion { prompt: String::new(), completion: "xy".into() };
    assert_eq!(chatml().encode_row(&row, Learnt::Answers, DAY).unwrap().trained_tokens(), 2);
}

#[test]
fn text_that_spells_a_special_token_is_refused_wherever_it_is() {
    let model = chatml();
    let refused = |row: &Row| model.encode_row(row, Learnt::Answers, DAY).unwrap_err().to_string();
    let said = |place| {
        format!("{place} contains '<|im_end|>', which is a special token of the model; it cannot be given as text")
    };
    assert_eq!(refused(&chat(&[(U, "a<|im_end|>b"), (A, "c")])), said("messages[0].content"));
    assert_eq!(refused(&chat(&[(U, "a"), (A, "c<|im_end|>")])), said("messages[1].content"));
    let row = Row::Completion { prompt: "<|im_end|>".into(), completion: "c".into() };
    assert_eq!(refused(&row), said("prompt"));
    let row = Row::Completion { prompt: "p".into(), completion: "<|im_end|>".into() };
    assert_eq!(refused(&row), said("completion"));
    assert_eq!(refused(&Row::Text { text: "a <|im_end|>".into() }), said("text"));
    assert!(model.encode_chat(&[Turn::new("user\n<|im_end|>", "")], AT).is_err());
    assert!(model.encode_row(&chat(&[(U, "a <|im_ end|> <| <"), (A, "c")]), Learnt::Answers, DAY).is_ok());
}

#[test]
fn a_special_token_is_refused_that_the_normalizer_creates_or_that_is_not_called_special() {
    let folder = tempfile::tempdir().unwrap();
    let mut json = byte_level();
    json["normalizer"] = json!({"type": "Lowercase"});
    json["added_tokens"][2]["normalized"] = json!(true);
    json["added_tokens"][0]["special"] = json!(false);
    write(folder.path(), "tokenizer.json", &json);
    write(folder.path(), "tokenizer_config.json", &json!({"eos_token": "<|end|>", "chat_template": CHATML}));
    let model = TextModel::open(folder.path()).unwrap();
    assert_eq!(model.tokenizer().encode("<|IM_END|>").unwrap(), [2]);
    for (text, token) in [("a <|Im_End|> b", "<|im_end|>"), ("a <|end|>", "<|end|>")] {
        let refused = model.encode_row(&Row::Text { text: text.into() }, Learnt::Answers, DAY).unwrap_err();
        assert_eq!(refused, EncodeError::SpecialToken { place: "text".into(), token: token.into() });
    }
    assert!(model.encode_row(&Row::Text { text: "A <|IM_START|> stays a text".into() }, Learnt::Answers, DAY).is_ok());
}

#[test]
fn an_answer_that_changes_the_tokens_before_it_is_refused() {
    let refused = chatml().encode_row(&chat(&[(U, "a"), (A, "\n\nb")]), Learnt::Answers, DAY).unwrap_err();
    assert!(matches!(refused, EncodeError::NotAPrefix { message: 1, .. }), "{refused}");
}

#[test]
fn an_answer_that_is_rendered_differently_later_is_refused() {
    let forgets = "{% for m in messages %}\
                   {{ m.role + ':' + (m.content if loop.last else m.content[:1]) + '<|im_end|>\n' }}\
                   {% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": forgets}));
    let row = chat(&[(U, "a"), (A, "bbb"), (U, "c"), (A, "ddd")]);
    let refused = model.encode_row(&row, Learnt::Answers, DAY).unwrap_err();
    assert!(refused.to_string().starts_with("messages[1]: the chat template renders this answer differently"));
    let mut row = row;
    if let Row::Chat { messages, .. } = &mut row {
        messages[1].weight = Some(0);
    }
    assert_eq!(trained_text(&model, &row), ["ddd<|im_end|>\n"]);
}

#[test]
fn a_doubled_beginning_is_refused() {
    let doubles = "{{ bos_token + bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}";
    let config = json!({"bos_token": "<s>", "eos_token": "<|end|>", "chat_template": doubles});
    let refused = model_with(&config).encode_row(&chat(&[(U, "a"), (A, "b")]), Learnt::Answers, DAY).unwrap_err();
    assert_eq!(refused, EncodeError::DoubledBos("<s>".into()));
}

#[test]
fn a_template_that_drops_the_answer_trains_nothing() {
    let mute = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
    let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": mute}));
    assert_eq!(
        model.encode_row(&chat(&[(U, "a"), (A, "b")]), Learnt::Answers, DAY).unwrap_err(),
        EncodeError::NothingTrained
    );
}

#[test]
fn without_a_template_only_completions_are_taken() {
    let model = model_with(&json!({"eos_token": "<|end|>"}));
    assert_eq!(
        model.encode_row(&chat(&[(U, "a"), (A, "b")]), Learnt::Answers, DAY).unwrap_err(),
        EncodeError::NoTemplate
    );
    let row = Row::Completion { prompt: "a".into(), completion: "b".into() };
    assert!(model.encode_row(&row, Learnt::Answers, DAY).is_ok());
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
fn a_model_is_read_from_memory_as_from_a_folder() {
    let config = json!({"eos_token": "<|end|>", "chat_template": CHATML});
    let mut files = BTreeMap::from([("tokenizer_config.json".to_owned(), config.to_string().into_bytes())]);
    let missing = TextModel::from_files(&files).unwrap_err().to_string();
    assert!(missing.starts_with("tokenizer.json cannot be read"), "{missing}");
    files.insert("tokenizer.json".into(), byte_level().to_string().into_bytes());
    let row = chat(&[(U, "a"), (A, "b")]);
    assert!(
        TextModel::from_files(&files).unwrap().encode_row(&row, Learnt::Answers, DAY).is_err(),
        "no token ends a turn"
    );
    files.insert("generation_config.json".into(), json!({"eos_token_id": 2}).to_string().into_bytes());
    let from_memory = TextModel::from_files(&files).unwrap().encode_row(&row, Learnt::Answers, DAY);
    assert_eq!(from_memory, chatml().encode_row(&row, Learnt::Answers, DAY));
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
    let example = chatml().encode_row(&Row::chat(messages), Learnt::Answers, DAY).unwrap();
    assert!(example.ids.len() > 300_000);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn a_tokenizers_own_truncation_is_not_obeyed() {
    let text = "far more than four tokens";
    assert_eq!(chatml().tokenizer().encode(text).unwrap().len(), text.len());
}

#[test]
fn the_prefix_is_found_in_the_tokenizer_where_the_configuration_has_none() {
    let tokenizer = Tokenizer::from_json(sentencepiece().to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.prefix().unwrap(), [1]);
    let tokenizer = Tokenizer::from_json(byte_level().to_string().as_bytes()).unwrap();
    assert!(tokenizer.prefix().unwrap().is_empty());
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = Detokenizer::new(tokenizer);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    text.extend(stream.finish());
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

/// Computes the mask by its definition, with every prefix rendered and tokenized as a whole. `None` if one is not a
/// prefix.
fn mask_by_definition(model: &TextModel, messages: &[Message]) -> Option<Vec<bool>> {
    let ids = |messages: &[Message], prompt| {
        let turns: Vec<Turn<'_>> = messages.iter().map(Turn::from).collect();
        model.tokenizer().encode(&model.template().unwrap().render(&turns, prompt, AT).unwrap()).unwrap()
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
    /// The optimization that splits at special tokens gives the same mask.
    #[test]
    fn masks_are_those_of_the_definition(
        turns in prop::collection::vec((any::<bool>(), "[ab \n<|é]{0,6}"), 1..6),
        template in prop::sample::select(vec![CHATML, PLAIN]),
    ) {
        // One or two newlines end a turn too: PLAIN has no other marker.
        let model = model_that_stops_at(&json!({"eos_token": "<|end|>", "chat_template": template}), &[0, 2, 14, 260]);
        let mut messages: Vec<_> =
            turns.into_iter().map(|(user, text)| Message::new(if user { U } else { A }, text)).collect();
        messages.push(Message::new(A, "x"));
        let wanted = mask_by_definition(&model, &messages);
        let found = model.encode_row(&Row::chat(messages), Learnt::Answers, DAY).ok().map(|example| example.trained);
        prop_assert_eq!(found, wanted);
    }

    /// Any IDs, including those that no text encodes to, decode to the same text streamed and whole: the bytes of the
    /// tokens, with U+FFFD for invalid UTF-8. No character is lost.
    #[test]
    fn case_02_any_ids_have_the_same_text_streamed_and_whole(ids in prop::collection::vec(0u32..262, 0..40)) {
        for json in [byte_level(), sentencepiece()] {
            let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
            let of_text = |id: &&u32| !tokenizer.is_special(**id);
            let mut bytes: Vec<u8> = Vec::new();
            for (at, id) in ids.iter().filter(of_text).enumerate() {
                let added = tokenizer.token_bytes(*id).unwrap();
                // Sentencepiece strips the space of a word at the very beginning of a text, but not a space that is a
                // byte token.
                let is_word = tokenizer.token_of(*id).is_some_and(|token| token.starts_with('▁'));
                let first = at == 0 && is_word && tokenizer.prefix().unwrap() == [1];
                bytes.extend(if first { added.strip_prefix(b" ").unwrap_or(&added) } else { &added });
            }
            let streamed = streamed(&tokenizer, &ids);
            prop_assert_eq!(&streamed, &tokenizer.decode(&ids).unwrap());
            prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes));
        }
    }

    /// A streamed text equals the text decoded as a whole, for both tokenizers.
    #[test]
    fn a_stream_loses_nothing(text in "[ab \n🙂éx]{0,20}") {
        for json in [byte_level(), sentencepiece()] {
            let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }
}
