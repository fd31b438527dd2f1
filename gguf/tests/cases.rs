//! Third-party files whose metadata is incomplete or uses older names: the conversion matches llama.cpp's
//! interpretation, or refuses the key by name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use attune_domain::architecture::{Architecture, RopeScaling};
use attune_domain::dataset::parse_row;
use attune_gguf::convert::convert;
use attune_text::encode::Learnt;
use attune_text::model::TextModel;
use serde_json::{Value, json};

fn case(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cases").join(path)
}

fn linear_rope(name: &str) -> Vec<u8> {
    fs::read(case("05-gguf-linear-rope-is-lost").join(name)).unwrap()
}

fn chat(name: &str) -> PathBuf {
    case("06-gguf-turn-never-ends").join(name)
}

fn converted(gguf: &[u8]) -> Result<(tempfile::TempDir, PathBuf), String> {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("model.gguf"), folder.path().join("model"));
    fs::write(&file, gguf).unwrap();
    convert(&file, &out).map_err(|e| e.to_string())?;
    Ok((folder, out))
}

fn scaling(gguf: &[u8]) -> Result<Option<RopeScaling>, String> {
    let (_kept, model) = converted(gguf)?;
    let config = fs::read(model.join("config.json")).unwrap();
    Ok(Architecture::from_config_json(&config).unwrap().rope_scaling)
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Encodes a key and value of the header: its type (4: u32, 6: f32, 7: bool, 8: string) and bytes.
fn pair(key: &str, value: &Value) -> Vec<u8> {
    let (kind, bytes) = match value {
        Value::String(word) => (8u32, text(word)),
        Value::Bool(flag) => (7, vec![u8::from(*flag)]),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => (4, u32::try_from(whole).unwrap().to_le_bytes().to_vec()),
            None => (6, (number.as_f64().unwrap() as f32).to_le_bytes().to_vec()),
        },
        _ => unreachable!("no test has {value}"),
    };
    [text(key), kind.to_le_bytes().to_vec(), bytes].concat()
}

/// Returns the file with more metadata. Tensors stay aligned: a string fills up to 32 bytes.
fn with(gguf: &[u8], pairs: &[(&str, Value)]) -> Vec<u8> {
    let mut added: Vec<u8> = pairs.iter().flat_map(|(key, value)| pair(key, value)).collect();
    let filler = pair("filler", &json!(""));
    let missing = (added.len() + filler.len()).next_multiple_of(32) - added.len() - filler.len();
    added.extend(pair("filler", &json!(" ".repeat(missing))));
    let mut bytes = gguf.to_vec();
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + pairs.len() as u64 + 1;
    bytes[16..24].copy_from_slice(&count.to_le_bytes());
    bytes.splice(24..24, added);
    bytes
}

#[test]
fn case_05_linear_rope_is_kept_without_its_type_and_under_its_older_key() {
    let linear = Ok(Some(RopeScaling::Linear { factor: 4.0 }));
    assert_eq!(scaling(&linear_rope("typed.gguf")), linear);
    assert_eq!(scaling(&linear_rope("untyped.gguf")), linear);
    assert_eq!(scaling(&linear_rope("older.gguf")), linear);
    assert_eq!(scaling(&linear_rope("one.gguf")), Ok(None));
}

#[test]
fn case_05_two_keys_of_one_factor_must_agree() {
    let both = |old: f64| with(&linear_rope("untyped.gguf"), &[("llama.rope.scale_linear", json!(old))]);
    assert_eq!(scaling(&both(4.0)), Ok(Some(RopeScaling::Linear { factor: 4.0 })));
    assert_eq!(scaling(&both(0.0)), Ok(Some(RopeScaling::Linear { factor: 4.0 })));
    assert_eq!(
        scaling(&both(2.0)).unwrap_err(),
        "'llama.rope.scaling.factor' is 4, but 'llama.rope.scale_linear' is 2: two names of one setting must have the \
         same value"
    );
    let none = with(&linear_rope("untyped.gguf"), &[("llama.rope.scaling.type", json!("none"))]);
    assert_eq!(scaling(&none), Ok(None));
}

#[test]
fn case_05_a_value_of_another_type_is_not_taken_for_none() {
    let plain = fs::read(chat("chat.gguf")).unwrap();
    let whole = with(&plain, &[("llama.rope.scaling.factor", json!(1))]);
    assert_eq!(scaling(&whole), Ok(None), "a whole number is a number");
    for (key, value, kind) in [
        ("llama.rope.scaling.factor", json!("4"), "a number"),
        ("llama.rope.scaling.type", json!(1), "a string"),
        ("llama.attention.sliding_window", json!("8"), "a whole number"),
        ("llama.attention.sliding_window", json!(8.5), "a whole number"),
        ("tokenizer.ggml.eot_token_id", json!("258"), "a whole number"),
    ] {
        let refused = converted(&with(&plain, &[(key, value)])).unwrap_err();
        assert_eq!(refused, format!("metadata '{key}' is not {kind}"));
    }
}

#[test]
fn other_scalings_are_converted_or_refused_by_their_key() {
    let plain = fs::read(chat("chat.gguf")).unwrap();
    let yarn = |more: &[(&str, Value)]| {
        let mut pairs = vec![
            ("llama.rope.scaling.type", json!("yarn")),
            ("llama.rope.scaling.factor", json!(4.0)),
            ("llama.rope.scaling.original_context_length", json!(1024)),
        ];
        pairs.extend_from_slice(more);
        scaling(&with(&plain, &pairs))
    };
    let read = yarn(&[("llama.rope.scaling.yarn_beta_fast", json!(16.5))]).unwrap();
    assert!(matches!(
        read,
        Some(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 1024,
            beta_fast: 16.5,
            beta_slow: 1.0,
            ..
        })
    ));
    for (key, value) in [("attn_factor", 0.5), ("yarn_log_multiplier", 0.25), ("yarn_ext_factor", 0.5)] {
        let key = format!("llama.rope.scaling.{key}");
        assert!(yarn(&[(&key, json!(value))]).unwrap_err().starts_with(&key));
    }
    let longrope = scaling(&with(&plain, &[("llama.rope.scaling.type", json!("longrope"))])).unwrap_err();
    assert!(longrope.starts_with("llama.rope.scaling.type 'longrope' is not supported; allowed: none"), "{longrope}");
}

#[test]
fn keys_that_change_the_arithmetic_are_refused_by_name() {
    let plain = fs::read(chat("chat.gguf")).unwrap();
    for (key, value) in [
        ("llama.attention.scale", json!(0.25)),
        ("llama.attention.causal", json!(false)),
        ("llama.logit_scale", json!(0.5)),
        ("llama.final_logit_softcapping", json!(30.5)),
    ] {
        let refused = converted(&with(&plain, &[(key, value)])).unwrap_err();
        assert!(refused.starts_with(key), "{refused}");
    }
    converted(&with(&plain, &[("llama.logit_scale", json!(1)), ("llama.attention.causal", json!(true))])).unwrap();
}

#[test]
fn limit_config_numbers_of_a_gguf_are_those_of_a_config() {
    let plain = fs::read(chat("chat.gguf")).unwrap();
    for (key, value, refused) in [
        ("llama.rope.scaling.factor", json!(1e9), "rope_scaling.factor"),
        ("llama.attention.sliding_window", json!(u32::MAX), "sliding_window"),
    ] {
        let said = scaling(&with(&plain, &[(key, value)]));
        let said = said.unwrap_err();
        assert!(said.contains(refused), "{said}");
    }
}

fn ends(model: &Path) -> Value {
    let file = fs::read(model.join("generation_config.json")).unwrap();
    serde_json::from_slice::<Value>(&file).unwrap()["eos_token_id"].clone()
}

#[test]
fn case_06_a_turn_ends_by_the_text_of_its_token_or_by_any_key_of_an_end() {
    for name in ["chat.gguf", "chat-with-eot-key.gguf", "chat-with-eom-key.gguf"] {
        let (_kept, model) = converted(&fs::read(chat(name)).unwrap()).unwrap();
        assert_eq!(ends(&model), json!([256, 258]), "{name}");
        let text = TextModel::open(&model).unwrap();
        assert_eq!(text.stop_ids(), [256, 258], "{name}");
        // An answer ends with the end-of-turn token, which is trained.
        for row in fs::read_to_string(chat("rows.jsonl")).unwrap().lines() {
            let row = parse_row(1, row.as_bytes()).unwrap();
            let example = text.encode_row(&row, Learnt::Answers, 0).unwrap();
            let mut trained = example.ids.iter().zip(&example.trained).filter(|(_, trained)| **trained);
            assert!(trained.any(|(id, _)| *id == 258), "{name}");
        }
    }
}

#[test]
fn case_06_an_end_outside_the_vocabulary_is_refused_by_name() {
    for key in ["eot", "eom"] {
        let key_name = format!("tokenizer.ggml.{key}_token_id");
        let refused = converted(&with(&fs::read(chat("chat.gguf")).unwrap(), &[(&key_name, json!(9999))])).unwrap_err();
        assert_eq!(refused, format!("the {key} token is not in the vocabulary"));
    }
}
