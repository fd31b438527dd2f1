//! The check of a Hugging Face folder before it is uploaded: everything that training and serving require exists, is
//! complete, and has the right shape. Of the weights, only headers are read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use attune_domain::architecture::Architecture;
use attune_domain::architecture::gguf_blocks::BlockKind;
use attune_domain::bytes::Bytes;
use attune_domain::weights::{expected, is_superfluous};
use attune_text::model::TextModel;
use serde::Deserialize;
use serde_json::Value;

use crate::error::ImportError;
use crate::license;

/// The maximum length of a safetensors header. Source: `MAX_HEADER_SIZE` of the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// Small optional files that are uploaded with a model.
const BESIDE: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"];

/// A valid base model.
#[derive(Debug, Clone, PartialEq)]
pub struct Folder {
    /// The folder's path.
    pub path: PathBuf,
    /// The model's architecture.
    pub architecture: Architecture,
    /// The files to upload, sorted by name; nothing else of the folder is needed.
    pub files: Vec<ModelFile>,
    /// The number of weights, each counted once.
    pub parameters: u64,
    /// `true`: the model has a chat template; without one, only prompt/completion rows can train it.
    pub has_chat_template: bool,
    /// The licence that the model's own files state; `None`: unknown.
    pub license: Option<String>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// The file's name in the folder.
    pub name: String,
    /// The file's size.
    pub size: Bytes,
}

/// A tensor's entry in a safetensors header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Checks a folder.
///
/// # Errors
/// [`ImportError`]: the first error found, with its file and tensor.
pub fn check_folder(path: &Path) -> Result<Folder, ImportError> {
    if !path.is_dir() {
        let source = std::io::Error::new(std::io::ErrorKind::NotADirectory, "not a folder");
        return Err(ImportError::Read { path: path.to_owned(), source });
    }
    let config = path.join("config.json");
    let config = fs::read(&config).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ImportError::Missing("config.json".into()),
        _ => ImportError::read(&config)(e),
    })?;
    refuse_quantised(&config)?;
    let architecture = Architecture::from_config_json(&config)?;
    if !path.join("tokenizer.json").is_file() {
        let advice = if path.join("tokenizer.model").is_file() {
            "tokenizer.json (tokenizer.model alone is not read; save the tokenizer with transformers first)"
        } else {
            "tokenizer.json"
        };
        return Err(ImportError::Missing(advice.into()));
    }
    let text = TextModel::open(path)?;
    let highest = text.tokenizer().highest_id().map_or(0, u64::from);
    if highest >= architecture.vocab_size {
        let reason = format!("token {highest} is beyond the {} rows of the embedding table", architecture.vocab_size);
        return Err(ImportError::file("tokenizer.json", reason));
    }
    let weights = weight_files(path)?;
    let parameters = check_tensors(path, &weights, &architecture)?;

    let mut names: Vec<String> = vec!["config.json".into(), "tokenizer.json".into()];
    names.extend(BESIDE.iter().filter(|name| path.join(name).is_file()).map(|name| (*name).to_owned()));
    if path.join("model.safetensors.index.json").is_file() && weights.len() > 1 {
        names.push("model.safetensors.index.json".into());
    }
    names.extend(weights);
    names.sort();
    let files = names
        .into_iter()
        .map(|name| {
            let file = path.join(&name);
            let size = Bytes(fs::metadata(&file).map_err(ImportError::read(&file))?.len());
            Ok(ModelFile { name, size })
        })
        .collect::<Result<_, ImportError>>()?;
    let has_chat_template = text.template().is_some();
    let license = license::of_folder(path);
    Ok(Folder { path: path.to_owned(), architecture, files, parameters, has_chat_template, license })
}

/// Refuses an already quantized base: its weights have a format of their own.
fn refuse_quantised(config: &[u8]) -> Result<(), ImportError> {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    match config.get("quantization_config") {
        None | Some(Value::Null) => Ok(()),
        Some(quantised) => {
            let method = quantised.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            Err(ImportError::Unsupported(format!(
                "the model is already quantized ({method}); import the unquantized model, or a GGUF file"
            )))
        }
    }
}

/// Returns the safetensors files of the folder: the single one, or those that the index lists.
fn weight_files(path: &Path) -> Result<Vec<String>, ImportError> {
    const INDEX: &str = "model.safetensors.index.json";
    if path.join("model.safetensors").is_file() {
        return Ok(vec!["model.safetensors".into()]);
    }
    let index = path.join(INDEX);
    if index.is_file() {
        let bytes = fs::read(&index).map_err(ImportError::read(&index))?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| ImportError::file(INDEX, e.to_string()))?;
        let mut shards: Vec<String> = index.weight_map.into_values().collect();
        shards.sort();
        shards.dedup();
        if let Some(stray) = shards.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
            return Err(ImportError::file(INDEX, format!("'{stray}' is not a file of this folder")));
        }
        if let Some(gone) = shards.iter().find(|name| !path.join(name).is_file()) {
            return Err(ImportError::Missing(format!("{gone}, which {INDEX} lists,")));
        }
        return if shards.is_empty() { Err(ImportError::file(INDEX, "it lists no files")) } else { Ok(shards) };
    }
    let entries = fs::read_dir(path).map_err(ImportError::read(path))?;
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let ends =
        |endings: [&str; 3]| names.iter().filter(move |name| endings.iter().any(|end| name.ends_with(end))).min();
    if let Some(pickle) = ends([".bin", ".pt", ".pth"]) {
        let reason = "a pickle can run code when it is opened, so it is not read; save the model as safetensors \
                      (transformers: save_pretrained) and import that";
        return Err(ImportError::file(pickle, reason));
    }
    if let Some(gguf) = ends([".gguf", ".gguf", ".gguf"]) {
        return Err(ImportError::file(gguf, "import this file itself, not its folder"));
    }
    Err(ImportError::Missing("model.safetensors".into()))
}

/// Checks that every expected tensor exists once, complete and with the right shape, and that no other exists. Returns
/// the number of weights.
fn check_tensors(path: &Path, files: &[String], model: &Architecture) -> Result<u64, ImportError> {
    let mut wanted = expected(model);
    let mut parameters = 0;
    for file in files {
        let mut entries: Vec<_> = header(&path.join(file), file)?.into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, entry) in entries {
            let Some(shape) = wanted.remove(&name) else {
                if is_superfluous(&name, model) {
                    continue;
                }
                return Err(ImportError::UnknownTensor(name));
            };
            if entry.dtype == "U8" && BlockKind::of_shape(&entry.shape, &shape).is_some() {
                parameters += shape.iter().product::<u64>();
                continue;
            }
            if !matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16") {
                let reason = format!("tensor '{name}' is {}; allowed: F32, F16, BF16", entry.dtype);
                return Err(ImportError::file(file, reason));
            }
            if entry.shape != shape {
                return Err(ImportError::Shape { tensor: name, found: entry.shape, wanted: shape });
            }
            parameters += shape.iter().product::<u64>();
        }
    }
    match wanted.keys().next() {
        Some(name) => Err(ImportError::Missing(format!("tensor '{name}'"))),
        None => Ok(parameters),
    }
}

/// Parses a safetensors file's header, and checks it against the file's length.
fn header(path: &Path, name: &str) -> Result<HashMap<String, Entry>, ImportError> {
    let broken = |reason: &str| ImportError::file(name, reason);
    let mut file = File::open(path).map_err(ImportError::read(path))?;
    let length = file.metadata().map_err(ImportError::read(path))?.len();
    let mut size = [0; 8];
    if length < 8 {
        return Err(broken("not a safetensors file: it is too short"));
    }
    file.read_exact(&mut size).map_err(ImportError::read(path))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(broken("not a safetensors file"));
    }
    if 8 + size > length {
        return Err(broken("the file is truncated inside its header"));
    }
    let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact(&mut text).map_err(ImportError::read(path))?;
    let mut entries: HashMap<String, Value> =
        serde_json::from_slice(&text).map_err(|_| broken("not a safetensors file"))?;
    entries.remove("__metadata__");
    let mut tensors = HashMap::new();
    for (tensor, entry) in entries {
        let entry: Entry = serde_json::from_value(entry).map_err(|_| broken("its header is not valid"))?;
        let [start, end] = entry.data_offsets;
        let width = match entry.dtype.as_str() {
            "F64" | "I64" | "U64" => 8,
            "F32" | "I32" | "U32" => 4,
            "F16" | "BF16" | "I16" | "U16" => 2,
            _ => 1,
        };
        let elements = entry.shape.iter().try_fold(width, |all: u64, dim| all.checked_mul(*dim));
        if end < start || elements != Some(end - start) {
            return Err(broken(&format!("tensor '{tensor}' has a length that does not match its shape")));
        }
        if 8 + size + end > length {
            return Err(broken(&format!("the file is truncated: tensor '{tensor}' ends beyond it")));
        }
        tensors.insert(tensor, entry);
    }
    Ok(tensors)
}
