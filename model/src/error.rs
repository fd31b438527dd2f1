//! Errors of tensors and their files, one variant per case that a caller can handle.

use std::path::{Path, PathBuf};

use attune_domain::{architecture::ArchitectureError, peft::Refusal};
use tch::TchError;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An input whose last dimension has the wrong size.
    #[error("{what}: the last dimension must be {want}, and is {got}")]
    Width {
        /// The layer that got the input.
        what: &'static str,
        /// The expected width.
        want: i64,
        /// The width of the input.
        got: i64,
    },
    /// A tensor in a file whose shape does not fit the model.
    #[error("tensor '{name}' has the shape {got:?}, and {want:?} is needed")]
    Shape {
        /// The tensor's name in the file.
        name: String,
        /// The expected shape.
        want: Vec<i64>,
        /// The shape in the file.
        got: Vec<i64>,
    },
    /// A required tensor that is missing.
    #[error("tensor '{name}' is missing in {}", place.display())]
    Missing {
        /// The tensor's name.
        name: String,
        /// The file or folder.
        place: PathBuf,
    },
    /// A tensor that the model does not have.
    #[error("tensor '{name}' in {} does not belong to this model", place.display())]
    Unexpected {
        /// The tensor's name.
        name: String,
        /// The file or folder.
        place: PathBuf,
    },
    /// A tensor with a NaN or infinite value.
    #[error("tensor '{0}' has NaN or infinite values")]
    NotFinite(String),
    /// A file that cannot be used: truncated, not of the type that its name indicates, or not supported.
    #[error("{}: {why}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// An I/O error of the operating system.
    #[error("{}", path.display())]
    Io {
        /// The file's path.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// A field of `adapter_config.json` with a value that Attune does not support.
    #[error(transparent)]
    AdapterConfig(#[from] Refusal),
    /// A `config.json` that Attune does not support.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// Inconsistent arguments: an ID outside the vocabulary, an empty batch, a cache of another model.
    #[error("{0}")]
    Input(String),
    /// An error that libtorch reported.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl ModelError {
    /// Returns whether memory ran out: the caller may retry with a smaller batch.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        let text = match self {
            Self::Torch(refusal) => refusal.to_string(),
            _ => return false,
        };
        // The messages of libtorch's CPU allocator, of its CUDA allocator, and of `std::bad_alloc`.
        ["can't allocate memory", "out of memory", "bad_alloc"].iter().any(|phrase| text.contains(phrase))
    }

    pub(crate) fn file(path: &Path, why: impl Into<String>) -> Self {
        Self::File { path: path.into(), why: why.into() }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
