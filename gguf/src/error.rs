//! The errors of an import. Each message states what was found and what is allowed.

use std::io;
use std::path::{Path, PathBuf};

use attune_domain::architecture::ArchitectureError;
use attune_text::error::TextError;

/// The reason why a model is not imported. No partial output is left.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file has another format, or its header is invalid.
    #[error("not a GGUF file: {0}")]
    NotGguf(String),
    /// The file ends before its tensors do.
    #[error("the file is truncated: tensor '{tensor}' ends at byte {end}, but the file has {length}")]
    Truncated {
        /// The first tensor that does not fit, in file order.
        tensor: String,
        /// The offset at which the tensor would end.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// An unsupported model family.
    #[error("architecture '{given}' is not supported; allowed: {allowed}")]
    Architecture {
        /// The file's architecture.
        given: String,
        /// The supported architectures.
        allowed: String,
    },
    /// An unsupported quantization of weights.
    #[error(
        "quantization {0} is not supported; allowed: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, \
         Q5_K, Q6_K"
    )]
    Quantisation(String),
    /// The model has a feature that Attune does not support.
    #[error("{0}")]
    Unsupported(String),
    /// The file lacks required data.
    #[error("{0} is missing")]
    Missing(String),
    /// A tensor that is not part of the architecture: importing would lose it.
    #[error("tensor '{0}' is not part of the model's architecture")]
    UnknownTensor(String),
    /// A tensor whose shape differs from the configuration.
    #[error("tensor '{tensor}' has shape {found:?}; the configuration says {wanted:?}")]
    Shape {
        /// The tensor's Hugging Face name.
        tensor: String,
        /// The tensor's shape.
        found: Vec<u64>,
        /// The expected shape.
        wanted: Vec<u64>,
    },
    /// Attune does not support the configuration.
    #[error(transparent)]
    Config(#[from] ArchitectureError),
    /// The tokenizer or the chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A file of a Hugging Face folder is invalid.
    #[error("{file}: {reason}")]
    File {
        /// The file's name.
        file: String,
        /// The defect.
        reason: String,
    },
    /// The output folder already exists.
    #[error("{} already exists; remove it, or choose another folder", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file cannot be written; the disk may be full.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
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
