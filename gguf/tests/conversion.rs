//! Compares conversions with transformers and gguf-py: `testdata/make_gguf.py` wrote the files and the expected
//! results.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attune_domain::digest::Sha256;
use attune_gguf::convert::{Blocks, convert, convert_with};
use attune_text::model::TextModel;
use candle_core::quantized::gguf_file::Content;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::Digest;

#[derive(Deserialize)]
struct Expected {
    fixtures: Vec<Fixture>,
}

#[derive(Deserialize)]
struct Fixture {
    file: String,
    weights: BTreeMap<String, Weight>,
    #[serde(default)]
    config: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    encodings: Vec<Encoding>,
}

#[derive(Deserialize)]
struct Weight {
    dtype: String,
    sha256: Sha256,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn fixture(file: &str) -> (Fixture, tempfile::TempDir) {
    let all: Expected = serde_json::from_str(include_str!("../testdata/expected.json")).unwrap();
    let fixture = all.fixtures.into_iter().find(|fixture| fixture.file == file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    convert(&testdata(file), &folder.path().join("model")).unwrap();
    (fixture, folder)
}

fn weights_are_equal(fixture: &Fixture, folder: &Path) {
    let bytes = std::fs::read(folder.join("model/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (name, weight) in &fixture.weights {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(format!("{:?}", tensor.dtype()), weight.dtype, "{name}");
        let found = Sha256::from_digest(sha2::Sha256::digest(tensor.data()).into());
        assert_eq!(found, weight.sha256, "{name} of kind {}", weight.kind);
    }
}

fn whole_model_is_equal(file: &str) -> (TextModel, serde_json::Value, tempfile::TempDir) {
    let (fixture, folder) = fixture(file);
    weights_are_equal(&fixture, folder.path());
    let config = std::fs::read(folder.path().join("model/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    for (field, wanted) in &fixture.config {
        assert_eq!(&config[field], wanted, "{field}");
    }
    let text = TextModel::open(&folder.path().join("model")).unwrap();
    for encoding in &fixture.encodings {
        assert_eq!(text.tokenizer().encode(&encoding.text).unwrap(), encoding.ids, "{:?}", encoding.text);
        assert_eq!(text.tokenizer().decode_with_special(&encoding.ids).unwrap(), encoding.decoded);
    }
    assert!(!fixture.encodings.is_empty());
    (text, config, folder)
}

#[test]
fn every_kind_of_quantisation_gives_gguf_pys_numbers_bit_for_bit() {
    let (fixture, folder) = fixture("kinds.gguf");
    weights_are_equal(&fixture, folder.path());
    let kinds: std::collections::BTreeSet<_> = fixture.weights.values().map(|weight| weight.kind.as_str()).collect();
    assert_eq!(kinds.len(), 13);
}

/// Returns the bytes of each tensor of a GGUF file, by its name there.
fn blocks_in(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(file).unwrap();
    let content = Content::read(&mut std::io::Cursor::new(&bytes)).unwrap();
    let tensor = |(name, info): (&String, &candle_core::quantized::gguf_file::TensorInfo)| {
        let start = usize::try_from(content.tensor_data_offset + info.offset).unwrap();
        let blocks = info.shape.elem_count() / info.ggml_dtype.block_size();
        (name.clone(), bytes[start..start + blocks * info.ggml_dtype.type_size()].to_vec())
    };
    content.tensor_infos.iter().map(tensor).collect()
}

#[test]
fn kept_blocks_are_the_bytes_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let converted = convert_with(&testdata("kinds.gguf"), &out, Blocks::Kept, &mut |_| {}).unwrap();
    let dequantized = convert(&testdata("kinds.gguf"), &folder.path().join("plain")).unwrap();
    assert_eq!(converted.folder.parameters, dequantized.folder.parameters);
    let file = blocks_in(&testdata("kinds.gguf"));
    let written = std::fs::read(out.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&written).unwrap();
    let (fixture, _dequantized) = fixture("kinds.gguf");
    let mut kept = std::collections::BTreeSet::new();
    for (name, weight) in &fixture.weights {
        let tensor = tensors.tensor(name).unwrap();
        let Some(bytes) = [("Q4_0", 18), ("Q4_1", 20), ("Q8_0", 34)].iter().find(|(kind, _)| weight.kind == *kind)
        else {
            assert_eq!(format!("{:?}", tensor.dtype()), weight.dtype, "{name}");
            continue;
        };
        kept.insert(weight.kind.as_str());
        assert_eq!((tensor.dtype(), tensor.shape()[1]), (Dtype::U8, 256 / 32 * bytes.1), "{name}");
        let stem = name.trim_start_matches("model.").replace("layers", "blk");
        let gguf = [
            ("embed_tokens", "token_embd"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
        ]
        .iter()
        .fold(stem, |stem, (from, to)| stem.replace(from, to));
        let stored = &file[&gguf];
        let row = tensor.shape()[1];
        // llama.cpp stores row `2i + j` of a head of q and k for row `4j + i`, of 8.
        let is_permuted = name.contains("q_proj") || name.contains("k_proj");
        let from = |row: usize| if is_permuted { row / 8 * 8 + 2 * (row % 4) + row % 8 / 4 } else { row };
        for (at, found) in tensor.data().chunks_exact(row).enumerate() {
            assert_eq!(found, &stored[from(at) * row..(from(at) + 1) * row], "{name}, row {at}");
        }
    }
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), ["Q4_0", "Q4_1", "Q8_0"]);
}

#[test]
fn a_llama_3_keeps_its_rope_scaling_and_its_own_head() {
    let (text, config, folder) = whole_model_is_equal("llama3.gguf");
    let rope = &config["rope_parameters"];
    assert_eq!(rope["rope_type"], "llama3");
    assert_eq!((rope["factor"].as_f64(), rope["rope_theta"].as_f64()), (Some(8.0), Some(500_000.0)));
    assert_eq!(rope["original_max_position_embeddings"], 8192);
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(text.prefix(), [0]); // llama.cpp adds BOS to such a text
    assert_eq!(text.stop_ids(), [1, 2]); // the end of text and the end of turn
    let template = std::fs::read_to_string(folder.path().join("model/chat_template.jinja")).unwrap();
    assert_eq!(text.template().unwrap().source(), template);
}

#[test]
fn a_mistral_with_sentencepiece_is_equal() {
    let (text, ..) = whole_model_is_equal("mistral.gguf");
    assert_eq!((text.prefix(), text.eos()), ([1].as_slice(), Some(2)));
    assert!(text.template().is_none());
}

#[test]
fn a_qwen2_with_biases_is_equal() {
    let (text, ..) = whole_model_is_equal("qwen2.gguf");
    assert!(text.prefix().is_empty());
    // Like the models' own tokenizer.json, and unlike transformers' GGUF reader: NFC before splitting.
    let encode = |text_: &str| text.tokenizer().encode(text_).unwrap();
    assert_eq!(encode("nai\u{308}ve"), encode("naïve"));
}

#[test]
fn a_qwen3_with_norms_is_equal_and_stays_in_half_precision() {
    let (_, config, _folder) = whole_model_is_equal("qwen3.gguf");
    assert_eq!(config["dtype"], "float16");
    assert_eq!(config["head_dim"], 128);
}
