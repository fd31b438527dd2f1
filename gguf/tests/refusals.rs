//! Invalid models are refused by name, and leave no files behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use attune_gguf::convert::convert;
use attune_gguf::error::ImportError;
use attune_gguf::folder::check_folder;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Converts bytes, and asserts that neither the folder nor a part of it is left.
fn refusal(gguf: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    fs::write(&file, gguf).unwrap();
    let refused = convert(&file, &folder.path().join("out")).unwrap_err().to_string();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["model.gguf"]);
    refused
}

fn llama3() -> Vec<u8> {
    fs::read(testdata("llama3.gguf")).unwrap()
}

/// Returns the file with one string in its header replaced by another of the same length.
fn with(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = llama3();
    let mut found = 0;
    for at in 0..bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from.as_bytes() {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "'{from}' is not in the file");
    bytes
}

/// Returns the offset of a tensor's ggml type in the header: after its name, dimension count and dimensions.
fn kind_of(bytes: &[u8], tensor: &str) -> usize {
    let name = bytes.windows(tensor.len()).position(|window| window == tensor.as_bytes()).unwrap() + tensor.len();
    let dimensions = u32::from_le_bytes(bytes[name..name + 4].try_into().unwrap()) as usize;
    name + 4 + 8 * dimensions
}

#[test]
fn what_is_no_gguf_is_distinguished() {
    assert_eq!(refusal(b""), "not a GGUF file: it is too short");
    assert_eq!(refusal(b"hello world"), "not a GGUF file: it does not begin with 'GGUF'");
    let zip =
        "not a GGUF file: it is a zip or PyTorch file; import a GGUF file or a Hugging Face folder with safetensors";
    assert_eq!(refusal(b"PK\x03\x04rest"), zip);
    assert_eq!(refusal(&llama3()[..1000]), "not a GGUF file: it is truncated inside its header");
}

#[test]
fn a_truncated_file_is_refused_by_its_first_missing_tensor() {
    let mut bytes = llama3();
    let length = bytes.len() - 1;
    bytes.truncate(length);
    let refused = refusal(&bytes);
    assert!(refused.starts_with("the file is truncated: tensor 'blk.1."), "{refused}");
    assert!(refused.ends_with(&format!("but the file has {length}")), "{refused}");
}

#[test]
fn no_cut_of_a_file_panics_or_passes() {
    let bytes = llama3();
    for length in (0..bytes.len()).step_by(4001) {
        refusal(&bytes[..length]);
    }
}

#[test]
fn what_attune_does_not_run_is_named() {
    let cases = [
        (with("llama", "gemma"), "architecture 'gemma' is not supported; allowed: llama, "),
        (with("llama-bpe", "poro-chat"), "the pre-tokenizer 'poro-chat' is not known, and guessing"),
        (with("gpt2", "bert"), "the tokenizer 'bert' is not supported; allowed: gpt2"),
        (with("blk.1.ffn_up", "blk.1.ffn_xp"), "tensor 'blk.1.ffn_xp.weight' is not part of the model's architecture"),
        (with("blk.1.ffn_up", "blk.7.ffn_up"), "tensor 'blk.7.ffn_up.weight' is not part of the model's architecture"),
        (with("llama.embedding_length", "llama.embedding_lengtx"), "metadata 'llama.embedding_length' is missing"),
        (with("rope_freqs.weight", "rope_xreqs.weight"), "tensor 'rope_xreqs.weight' is not part"),
    ];
    for (bytes, said) in cases {
        let refused = refusal(&bytes);
        assert!(refused.starts_with(said), "{refused}");
    }
}

#[test]
fn a_quantisation_that_is_not_read_is_named() {
    let mut bytes = llama3();
    let at = kind_of(&bytes, "blk.0.attn_q.weight");
    bytes[at] = 23;
    assert!(refusal(&bytes).starts_with("quantization IQ4_XS is not supported; allowed: F32, F16, BF16, Q4_0"));
}

#[test]
fn hostile_headers_are_refused() {
    let mut huge = llama3();
    let at = kind_of(&huge, "blk.0.attn_q.weight");
    huge[at - 16..at].fill(0xFF); // dimensions whose product overflows
    let refused = refusal(&huge);
    assert!(refused.contains("blk.0.attn_q.weight") || refused.starts_with("not a GGUF file"), "{refused}");

    let mut many = llama3();
    many[8..16].fill(0xFF); // the number of tensors
    assert!(refusal(&many).starts_with("not a GGUF file: "));
}

#[test]
fn a_folder_that_exists_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "mine").unwrap();
    let refused = convert(&testdata("llama3.gguf"), folder.path()).unwrap_err();
    assert!(matches!(refused, ImportError::Exists(_)));
    assert_eq!(fs::read(folder.path().join("mine")).unwrap(), b"mine");
}

#[test]
fn a_file_that_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = convert(&folder.path().join("gone.gguf"), &folder.path().join("out")).unwrap_err().to_string();
    assert!(refused.contains("gone.gguf cannot be read: No such file"), "{refused}");
}

/// Returns a valid folder that only this test uses.
fn sound() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    convert(&testdata("llama3.gguf"), &model).unwrap();
    (folder, model)
}

#[test]
fn a_sound_folder_says_what_to_upload() {
    let (_folder, model) = sound();
    fs::write(model.join("README.md"), "not needed").unwrap();
    let found = check_folder(&model).unwrap();
    let names: Vec<_> = found.files.iter().map(|file| file.name.as_str()).collect();
    let wanted = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, wanted);
    assert!(found.has_chat_template);
    assert_eq!(found.files[3].size.0, fs::metadata(model.join("model.safetensors")).unwrap().len());
    let projections = found.architecture.projection_weights() + found.architecture.embedding_weights();
    assert_eq!(found.parameters, projections + 5 * found.architecture.hidden_size);
}

#[test]
fn a_folder_without_a_part_is_refused_by_that_part() {
    for (gone, said) in [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
    ] {
        let (_folder, model) = sound();
        fs::remove_file(model.join(gone)).unwrap();
        assert_eq!(check_folder(&model).unwrap_err().to_string(), said);
    }
    let (_folder, model) = sound();
    fs::remove_file(model.join("chat_template.jinja")).unwrap();
    assert!(!check_folder(&model).unwrap().has_chat_template);
    assert!(check_folder(&model.join("tokenizer.json")).unwrap_err().to_string().contains("not a folder"));
}

#[test]
fn pickles_are_refused_with_advice() {
    let (_folder, model) = sound();
    fs::rename(model.join("model.safetensors"), model.join("pytorch_model.bin")).unwrap();
    let refused = check_folder(&model).unwrap_err().to_string();
    assert!(refused.starts_with("pytorch_model.bin: a pickle can run code"), "{refused}");
}

#[test]
fn truncated_and_foreign_weights_are_refused_by_name() {
    let (_folder, model) = sound();
    let file = model.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let refused = check_folder(&model).unwrap_err().to_string();
    assert!(refused.starts_with("model.safetensors: the file is truncated: tensor '"), "{refused}");
    for (bytes, said) in [
        (&whole[..4], "model.safetensors: not a safetensors file: it is too short"),
        (&whole[..100], "model.safetensors: the file is truncated inside its header"),
        (b"this is no model at all", "model.safetensors: not a safetensors file"),
    ] {
        fs::write(&file, bytes).unwrap();
        assert_eq!(check_folder(&model).unwrap_err().to_string(), said);
    }
}

#[test]
fn weights_and_configuration_must_agree() {
    let (_folder, model) = sound();
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let cases = [
        (
            "\"intermediate_size\": 48",
            "\"intermediate_size\": 49",
            "has shape [32, 48]; the configuration says [32, 49]",
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "tensor 'model.layers.2.input_layernorm.weight' is missing",
        ),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "is not part of the model's architecture"),
        ("\"use_cache\": true", "\"quantization_config\": {\"quant_method\": \"gptq\"}", "already quantized (gptq)"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"", "model_type: gpt2 is not supported"),
    ];
    for (from, to, said) in cases {
        assert!(config.contains(from), "{from}");
        fs::write(model.join("config.json"), config.replace(from, to)).unwrap();
        let refused = check_folder(&model).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn shards_are_read_by_their_index() {
    let (_folder, model) = sound();
    let index = |map: &str| fs::write(model.join("model.safetensors.index.json"), map).unwrap();
    let whole = fs::read(model.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let mut names: Vec<_> = tensors.names().into_iter().map(ToOwned::to_owned).collect();
    names.sort();
    let mut map = serde_json::Map::new();
    for (i, part) in names.chunks(names.len() / 2 + 1).enumerate() {
        let file = format!("model-{}-of-2.safetensors", i + 1);
        let views: Vec<_> = part.iter().map(|name| (name.as_str(), tensors.tensor(name).unwrap())).collect();
        fs::write(model.join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
        map.extend(part.iter().map(|name| (name.clone(), file.clone().into())));
    }
    fs::remove_file(model.join("model.safetensors")).unwrap();
    index(&serde_json::json!({"metadata": {}, "weight_map": map}).to_string());
    let found = check_folder(&model).unwrap();
    assert_eq!(found.files.iter().filter(|file| file.name.contains("safetensors")).count(), 3);

    fs::remove_file(model.join("model-2-of-2.safetensors")).unwrap();
    let refused = check_folder(&model).unwrap_err().to_string();
    assert!(refused.starts_with("model-2-of-2.safetensors, which model.safetensors.index.json lists,"), "{refused}");
    index(r#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    assert!(check_folder(&model).unwrap_err().to_string().contains("is not a file of this folder"));
}
