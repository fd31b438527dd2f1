//! What can go wrong with a model on its way in. Each says what was found and what would do.

use std::io;
use std::path::{Path, PathBuf};

use attune_domain::architecture::ArchitectureError;
use attune_text::error::TextError;

/// Why a model is not imported. Nothing half-made is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is something else, or its header is broken.
    #[error("not a GGUF file: {0}")]
    NotGguf(String),
    /// The file ends before its tensors do.
    #[error("the file is truncated: tensor '{tensor}' ends at byte {end}, but the file has {length}")]
    Truncated {
        /// The first tensor that does not fit, in the order of the file.
        tensor: String,
        /// Where it would end.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// A family of models that Attune does not run.
    #[error("architecture '{0}' is not supported; allowed: llama, mistral, qwen2, qwen3")]
    Architecture(String),
    /// A way of storing weights that is not read.
    #[error(
        "quantisation {0} is not supported; allowed: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, \
         Q5_K, Q6_K"
    )]
    Quantisation(String),
    /// The model has a part that Attune does not run.
    #[error("{0}")]
    Unsupported(String),
    /// The file lacks something that it must hold.
    #[error("{0} is missing")]
    Missing(String),
    /// A tensor that the architecture has no place for: importing would lose it.
    #[error("tensor '{0}' belongs to no part of the model that Attune knows")]
    UnknownTensor(String),
    /// A tensor of another shape than the configuration says.
    #[error("tensor '{tensor}' has shape {found:?}; the configuration says {wanted:?}")]
    Shape {
        /// The tensor, by its Hugging Face name.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// What it should be.
        wanted: Vec<u64>,
    },
    /// The configuration is not one that Attune runs.
    #[error(transparent)]
    Config(#[from] ArchitectureError),
    /// The tokenizer or the chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A file of a Hugging Face folder is not what it should be.
    #[error("{file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The folder to write to is there already.
    #[error("{} is there already; remove it, or choose another folder", .0.display())]
    Exists(PathBuf),
    /// The system does not let us read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The system does not let us write; the disk may be full.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl ImportError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    pub(crate) fn file(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::File { file: file.into(), reason: reason.into() }
    }
}
