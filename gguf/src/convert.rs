//! The atomic conversion of a GGUF file to a Hugging Face folder: the folder is written under a temporary name,
//! checked, and then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use attune_domain::architecture::Architecture;
use attune_domain::architecture::gguf_blocks::BlockKind;
use attune_domain::weights::expected;
use candle_core::quantized::GgmlDType;
use serde_json::{Value, json};

use crate::config::{config_json, is_permuted};
use crate::error::ImportError;
use crate::folder::{Folder, check_folder};
use crate::generation::generation_json;
use crate::license;
use crate::source::{Source, Stored};
use crate::tensors::renamed;
use crate::tokenizer::tokenizer_files;
use crate::weights::{self, Planned};

/// The result of a conversion.
#[derive(Debug)]
pub struct Converted {
    /// The checked folder.
    pub folder: Folder,
    /// The model's name in the file's metadata, if any.
    pub name: Option<String>,
}

/// The form of quantized matrices in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// In `f32`, as other programs read them.
    Dequantized,
    /// Q4_0, Q4_1 and Q8_0 in the file's own blocks, byte for byte, as [`BlockKind`] describes; all others in `f32`.
    Kept,
}

/// The progress of a conversion, in bytes of tensors.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The number of bytes written.
    pub done: u64,
    /// The total number of bytes to write.
    pub total: u64,
}

/// Converts `gguf` into a new folder `out`, with quantized matrices in `f32`.
///
/// # Errors
/// [`ImportError`]: the model is not supported, `out` already exists, or the disk is full.
pub fn convert(gguf: &Path, out: &Path) -> Result<Converted, ImportError> {
    convert_with(gguf, out, Blocks::Dequantized, &mut |_| {})
}

/// Converts like [`convert`], with quantized matrices in this form, and reports progress.
///
/// # Errors
/// As [`convert`].
pub fn convert_with(
    gguf: &Path,
    out: &Path,
    blocks: Blocks,
    progress: &mut dyn FnMut(Progress),
) -> Result<Converted, ImportError> {
    let mut source = Source::open(gguf)?;
    let mut config = config_json(&mut source)?;
    let architecture = Architecture::from_config_json(Value::Object(config.clone()).to_string().as_bytes())?;
    let files = tokenizer_files(&source)?;
    let generation = generation_json(&source)?;
    if files.tokens as u64 > architecture.vocab_size {
        return Err(ImportError::Unsupported(format!(
            "the tokenizer has {} tokens, but the embedding table only {} rows",
            files.tokens, architecture.vocab_size
        )));
    }
    let tensors = plan(&source, &architecture, blocks)?;
    let kind = tensors.iter().find(|t| t.name == "model.embed_tokens.weight").map_or("F32", |t| t.written().0);
    let dtype = match kind {
        "F16" => "float16",
        "BF16" => "bfloat16",
        _ => "float32",
    };
    config.insert("dtype".into(), json!(dtype));

    let staging = Staging::new(out)?;
    staging.json("config.json", &Value::Object(config))?;
    staging.json("generation_config.json", &Value::Object(generation))?;
    staging.json("tokenizer.json", &files.tokenizer)?;
    staging.json("tokenizer_config.json", &files.config)?;
    if let Some(template) = source.text("tokenizer.chat_template") {
        staging.write("chat_template.jinja", |file| file.write_all(template.as_bytes()))?;
    }
    staging.weights(&mut source, &tensors, progress)?;
    check_folder(&staging.path)?;
    let name = source.text("general.name").map(str::to_owned);
    staging.settle(out)?;
    let folder = Folder { license: license::of_gguf(&source), ..check_folder(out)? };
    Ok(Converted { folder, name })
}

/// Returns all tensors of the file under their new names: exactly those that the architecture requires.
fn plan(source: &Source, model: &Architecture, blocks: Blocks) -> Result<Vec<Planned>, ImportError> {
    let reordered = source.text("general.architecture").is_some_and(is_permuted);
    let mut wanted = expected(model);
    let mut tensors = Vec::new();
    for stored in source.tensors() {
        if stored.name == "rope_freqs.weight" {
            continue; // `config.json` has its content
        }
        let name = renamed(&stored.name).ok_or_else(|| ImportError::UnknownTensor(stored.name.clone()))?;
        let shape = wanted.remove(&name).ok_or_else(|| ImportError::UnknownTensor(stored.name.clone()))?;
        if shape != stored.shape {
            return Err(ImportError::Shape { tensor: name, found: stored.shape, wanted: shape });
        }
        if matches!(stored.kind, GgmlDType::Q8_1 | GgmlDType::Q8K) {
            return Err(ImportError::Quantisation(format!("{:?}", stored.kind)));
        }
        let turned = reordered && (name.contains(".q_proj.") || name.contains(".k_proj."));
        let is_kept = blocks == Blocks::Kept && kept_kind(&stored).is_some();
        tensors.push(Planned { name, stored, permuted: turned.then_some(model.head_dim), is_kept });
    }
    if let Some(name) = wanted.keys().next() {
        return Err(ImportError::Missing(format!("tensor '{name}'")));
    }
    weights::sort(&mut tensors);
    Ok(tensors)
}

/// Returns the kind of a matrix's blocks, if they can be kept.
fn kept_kind(stored: &Stored) -> Option<BlockKind> {
    let kind = match stored.kind {
        GgmlDType::Q4_0 => BlockKind::Q4Zero,
        GgmlDType::Q4_1 => BlockKind::Q4One,
        GgmlDType::Q8_0 => BlockKind::Q8Zero,
        _ => return None,
    };
    let &[_, inputs] = stored.shape.as_slice() else { return None };
    (kind.row_bytes(inputs)? == stored.row_bytes()).then_some(kind)
}

/// A folder that is deleted unless it is settled.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn new(out: &Path) -> Result<Self, ImportError> {
        if out.exists() {
            return Err(ImportError::Exists(out.to_owned()));
        }
        let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let path = out.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        fs::create_dir_all(&path).map_err(ImportError::write(&path))?;
        Ok(Self { path })
    }

    fn json(&self, name: &str, value: &Value) -> Result<(), ImportError> {
        self.write(name, |file| {
            serde_json::to_writer_pretty(&mut *file, value)?;
            file.write_all(b"\n")
        })
    }

    fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<(), ImportError> {
        let path = self.path.join(name);
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            content(&mut file)?;
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
        };
        write().map_err(ImportError::write(&path))
    }

    fn weights(
        &self,
        source: &mut Source,
        tensors: &[Planned],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ImportError> {
        let path = self.path.join("model.safetensors");
        let failed = |e| ImportError::write(&path)(e);
        let total = weights::total_bytes(tensors);
        let mut file = File::create(&path).map_err(failed)?;
        weights::write(source, tensors, &mut file, failed, &mut |done| progress(Progress { done, total }))?;
        file.sync_all().map_err(failed)
    }

    /// Renames the folder to its final name. If a non-empty folder has appeared there meanwhile, the rename fails and
    /// leaves that one unchanged.
    fn settle(self, out: &Path) -> Result<(), ImportError> {
        fs::rename(&self.path, out).map_err(ImportError::write(out))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After `settle`, this path no longer exists.
        let _ = fs::remove_dir_all(&self.path);
    }
}
