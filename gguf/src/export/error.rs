//! The errors of an export.

use std::io;
use std::path::{Path, PathBuf};

use attune_domain::architecture::ArchitectureError;

/// The reason why a GGUF file is not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// GGUF has no form for a part of the model.
    #[error("{0}")]
    Unsupported(String),
    /// Attune does not support the configuration.
    #[error(transparent)]
    Config(#[from] ArchitectureError),
    /// A file of the model is not valid JSON.
    #[error("{}: {why}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The defect.
        why: String,
    },
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be written; the disk may be full.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The caller's tensor cannot be read, or the caller stops the export.
    #[error("the weights cannot be read")]
    Weights(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ExportError> {
    std::fs::read(path).map_err(|source| ExportError::Read { path: path.to_owned(), source })
}
