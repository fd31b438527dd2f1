//! Exports: a converted model is written as GGUF again, read with this crate's own reader, and compared with the first
//! conversion.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use attune_domain::architecture::Architecture;
use attune_domain::spec::AdapterSpec;
use attune_gguf::convert::convert;
use attune_gguf::export::adapter::write_adapter;
use attune_gguf::export::importance::Importance;
use attune_gguf::export::interface::{AdapterSource, Matrices, ModelSource, Weights, Written};
use attune_gguf::export::model::write_model;
use attune_text::model::TextModel;
use safetensors::{Dtype, SafeTensors};

/// The largest error of an 8-bit weight, relative to the largest weight of its block: half a step of 1/127 and the
/// rounding of the scale to 16 bits.
const Q8_ERROR: f32 = 0.5 / 127.0 + 1.0 / 1024.0;

/// The weights of a folder, as 32-bit floats.
struct Folder(BTreeMap<String, Vec<f32>>);

impl Folder {
    fn read(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| {
            let tensor = tensors.tensor(name).unwrap();
            let data = tensor.data();
            match tensor.dtype() {
                Dtype::F32 => {
                    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()
                }
                Dtype::BF16 => {
                    data.as_chunks::<2>().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect()
                }
                _ => {
                    assert_eq!(tensor.dtype(), Dtype::F16, "{name}");
                    data.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
                }
            }
        };
        Self(tensors.names().into_iter().map(|name| (name.to_owned(), floats(name))).collect())
    }
}

impl Weights for Folder {
    type Error = Infallible;

    fn read(&mut self, name: &str) -> Result<Vec<f32>, Infallible> {
        Ok(self.0[name].clone())
    }

    fn written(&mut self, written: Written) -> Result<(), Infallible> {
        assert!(written.done <= written.total && written.done > 0);
        Ok(())
    }
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Returns a source without a template, a licence or an importance matrix.
fn plain(folder: &Path, matrices: Matrices) -> ModelSource<'_> {
    ModelSource { folder, template: None, name: "a tiny model", license: None, matrices, importance: None, threads: 2 }
}

/// Converts a fixture, exports it with these matrices, and converts the export again.
fn there_and_back(file: &str, matrices: Matrices) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    convert(&testdata(file), &first).unwrap();
    let template = std::fs::read_to_string(first.join("chat_template.jinja")).ok();
    let source = ModelSource { template: template.as_deref(), license: Some("mit"), ..plain(&first, matrices) };
    let gguf = folder.path().join("model.gguf");
    write_model(&source, &gguf, &mut Folder::read(&first)).unwrap();
    let converted = convert(&gguf, &second).unwrap();
    assert_eq!(converted.name.as_deref(), Some("a tiny model"));
    assert_eq!(converted.folder.license.as_deref(), Some("mit"));
    (folder, first, second)
}

fn texts_are_equal(first: &Path, second: &Path) {
    let (one, other) = (TextModel::open(first).unwrap(), TextModel::open(second).unwrap());
    for text in ["The quick brown fox's 12345 jumps\n\n  and more", "naïve café 日本語 🙂", " ", "a<|end|>b"] {
        assert_eq!(one.tokenizer().encode(text).unwrap(), other.tokenizer().encode(text).unwrap(), "{text:?}");
    }
    assert_eq!((one.prefix(), one.stop_ids()), (other.prefix(), other.stop_ids()));
    let source = |text: &TextModel| text.template().map(|template| template.source().to_owned());
    assert_eq!(source(&one), source(&other));
    let architecture =
        |folder: &Path| Architecture::from_config_json(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(architecture(first), architecture(second));
}

#[test]
fn every_family_comes_back_from_32_bits_as_it_was() {
    for file in ["llama3.gguf", "mistral.gguf", "qwen2.gguf", "qwen3.gguf"] {
        let (_kept, first, second) = there_and_back(file, Matrices::F32);
        texts_are_equal(&first, &second);
        let (one, other) = (Folder::read(&first), Folder::read(&second));
        assert!(one.0 == other.0, "{file}");
    }
}

#[test]
fn sixteen_and_eight_bits_are_as_near_as_they_can_be() {
    for (matrices, bound) in [(Matrices::F16, 1.0 / 1024.0), (Matrices::Q8Zero, Q8_ERROR)] {
        let (_kept, first, second) = there_and_back("llama3.gguf", matrices);
        let (one, other) = (Folder::read(&first), Folder::read(&second));
        for (name, numbers) in &one.0 {
            let found = &other.0[name];
            assert_eq!(numbers.len(), found.len(), "{name}");
            for (wanted, found) in numbers.chunks(32).zip(found.chunks(32)) {
                let largest = wanted.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
                let apart = wanted.iter().zip(found).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(apart <= bound * largest, "{name}: {apart} of {largest}");
            }
        }
    }
}

/// Returns the root mean square of the errors of all matrices' weights, relative to that of the weights.
fn error(one: &Folder, other: &Folder) -> f64 {
    let (mut apart, mut all) = (0.0, 0.0);
    for (name, numbers) in one.0.iter().filter(|(name, _)| !name.contains("norm")) {
        for (wanted, found) in numbers.iter().zip(&other.0[name]) {
            apart += f64::from(wanted - found) * f64::from(wanted - found);
            all += f64::from(*wanted) * f64::from(*wanted);
        }
    }
    (apart / all).sqrt()
}

#[test]
fn a_mixture_of_four_bits_is_read_again_and_is_less_exact_than_eight_bits() {
    // The last one has rows of 256 weights, which are in the larger blocks.
    for file in ["llama3.gguf", "mistral.gguf", "qwen2.gguf", "qwen3.gguf", "kinds.gguf"] {
        let of = |matrices| {
            let (_kept, first, second) = there_and_back(file, matrices);
            texts_are_equal(&first, &second);
            error(&Folder::read(&first), &Folder::read(&second))
        };
        let (eight, four) = (of(Matrices::Q8Zero), of(Matrices::Q4KMedium));
        assert!(eight < four && four < 0.12, "{file}: {eight} and {four}");
    }
}

#[test]
fn an_importance_matrix_is_named_in_the_metadata_and_changes_the_matrices_that_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    convert(&testdata("llama3.gguf"), &first).unwrap();
    let numbers = Folder::read(&first);
    let name = "model.layers.0.mlp.up_proj.weight";
    let config = std::fs::read(first.join("config.json")).unwrap();
    let hidden = usize::try_from(Architecture::from_config_json(&config).unwrap().hidden_size).unwrap();
    let importance = Importance {
        columns: [(name.to_owned(), (0..hidden).map(|column| if column % 7 == 0 { 50.0 } else { 1.0 }).collect())]
            .into(),
        dataset: "rows.jsonl".into(),
        chunks: 3,
    };
    let written = |importance, file: &str| {
        let path = folder.path().join(file);
        let source = ModelSource { importance, ..plain(&first, Matrices::Q4KMedium) };
        write_model(&source, &path, &mut Folder::read(&first)).unwrap();
        convert(&path, &path.with_extension("")).unwrap();
        (path.clone(), Folder::read(&path.with_extension("")))
    };
    let (plain_file, without) = written(None, "plain.gguf");
    let (weighted_file, with) = written(Some(&importance), "weighted.gguf");
    let content = |path: &Path| {
        candle_core::quantized::gguf_file::Content::read(&mut std::fs::File::open(path).unwrap()).unwrap()
    };
    let (without_keys, with_keys) = (content(&plain_file).metadata, content(&weighted_file).metadata);
    let number = |key: &str| with_keys[key].to_u32().unwrap();
    assert_eq!((number("quantize.imatrix.entries_count"), number("quantize.imatrix.chunks_count")), (1, 3));
    assert_eq!(with_keys["quantize.imatrix.dataset"].to_string().unwrap(), "rows.jsonl");
    assert_eq!(
        (number("general.file_type"), with_keys["general.license"].to_string().unwrap().as_str()),
        (15, "unknown")
    );
    assert!(!without_keys.contains_key("quantize.imatrix.dataset"));
    let weighted = |found: &Folder| -> f64 {
        let errors = numbers.0[name].iter().zip(&found.0[name]).zip(importance.columns[name].iter().cycle());
        errors.map(|((one, other), weight)| f64::from(weight * (one - other) * (one - other))).sum()
    };
    assert!(weighted(&with) < weighted(&without), "{} and {}", weighted(&with), weighted(&without));
    let same = |name: &str| with.0[name] == without.0[name];
    assert!(!same(name) && same("model.layers.0.mlp.gate_proj.weight") && same("model.embed_tokens.weight"));
}

/// Factors whose numbers name their place.
struct Factors;

impl Weights for Factors {
    type Error = Infallible;

    fn read(&mut self, name: &str) -> Result<Vec<f32>, Infallible> {
        assert!(name.ends_with("lora_A") || name.ends_with("lora_B"), "{name}");
        Ok((0..4 * 64).map(|place| place as f32).collect())
    }

    fn written(&mut self, _written: Written) -> Result<(), Infallible> {
        Ok(())
    }
}

const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256, "max_position_embeddings": 512,
    "tie_word_embeddings": true}"#;

#[test]
fn an_adapter_has_llama_cpps_names_scale_and_rows() {
    let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
    let spec = AdapterSpec { use_rslora: true, ..AdapterSpec::lora(4, 8.0, &["q_proj", "v_proj"]) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    let source = AdapterSource { architecture: &architecture, spec: &spec, name: "house" };
    write_adapter(&source, &path, &mut Factors).unwrap();

    let mut file = std::fs::File::open(&path).unwrap();
    let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
    let text = |key: &str| content.metadata[key].to_string().unwrap().clone();
    assert_eq!((text("general.type"), text("adapter.type")), ("adapter".into(), "lora".into()));
    // rsLoRA: 8 / √4, and llama.cpp divides by 4.
    assert_eq!(content.metadata["adapter.lora.alpha"].to_f32().unwrap(), 16.0);
    let mut names: Vec<&str> = content.tensor_infos.keys().map(String::as_str).collect();
    names.sort_unstable();
    let wanted = ["q", "v"].map(|name| ["lora_a", "lora_b"].map(|factor| format!("blk.0.attn_{name}.weight.{factor}")));
    assert_eq!(names, wanted.concat());
    let mut rows = |name: &str| -> Vec<f32> {
        let tensor = content.tensor(&mut file, name, &candle_core::Device::Cpu).unwrap();
        let tensor = tensor.dequantize(&candle_core::Device::Cpu).unwrap();
        tensor.to_vec2::<f32>().unwrap().into_iter().map(|row| row[0]).collect()
    };
    // Heads of 16 rows, 4 numbers each: llama.cpp's rows 0 and 1 are Hugging Face's rows 0 and 8.
    assert_eq!(rows("blk.0.attn_q.weight.lora_b")[..4], [0.0, 32.0, 4.0, 36.0]);
    assert_eq!(rows("blk.0.attn_v.weight.lora_b")[..4], [0.0, 4.0, 8.0, 12.0]);
    assert_eq!(rows("blk.0.attn_q.weight.lora_a"), [0.0, 64.0, 128.0, 192.0]);
}

#[test]
fn what_gguf_cannot_express_is_refused_and_no_file_is_left() {
    let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
    let spec = AdapterSpec { use_dora: true, ..AdapterSpec::lora(4, 8.0, &["q_proj"]) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    let source = AdapterSource { architecture: &architecture, spec: &spec, name: "house" };
    let refused = write_adapter(&source, &path, &mut Factors).unwrap_err().to_string();
    assert!(refused.contains("DoRA"), "{refused}");
    let wide = AdapterSpec::lora(8, 8.0, &["q_proj"]);
    let source = AdapterSource { spec: &wide, ..source };
    let refused = write_adapter(&source, &path, &mut Factors).unwrap_err().to_string();
    assert!(refused.contains("256 numbers, and 512 are needed"), "{refused}");
    assert!(!path.exists());
}
