//! What can go wrong with tensors and their files, one variant per thing that a caller can act upon.

use std::path::{Path, PathBuf};

use attune_domain::{architecture::ArchitectureError, peft::Refusal};
use tch::TchError;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The last dimension of an input does not fit.
    #[error("{what}: the last dimension must be {want}, and is {got}")]
    Width {
        /// Whose input.
        what: &'static str,
        /// The width that fits.
        want: i64,
        /// The width given.
        got: i64,
    },
    /// A tensor of a file has another shape than the model needs.
    #[error("tensor '{name}' has the shape {got:?}, and {want:?} is needed")]
    Shape {
        /// Its name in the file.
        name: String,
        /// The shape needed.
        want: Vec<i64>,
        /// The shape found.
        got: Vec<i64>,
    },
    /// A tensor that must be there is not.
    #[error("tensor '{name}' is missing in {}", place.display())]
    Missing {
        /// Its name.
        name: String,
        /// The file or folder.
        place: PathBuf,
    },
    /// A tensor is there that has no place in the model.
    #[error("tensor '{name}' in {} has no place in this model", place.display())]
    Unexpected {
        /// Its name.
        name: String,
        /// The file or folder.
        place: PathBuf,
    },
    /// A tensor holds an infinity or a NaN.
    #[error("tensor '{0}' holds a number that is not finite")]
    NotFinite(String),
    /// A file cannot be used: truncated, not what its name says, or of a kind that Attune does not read.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// A field of `adapter_config.json` has a value that Attune does not run.
    #[error(transparent)]
    AdapterConfig(#[from] Refusal),
    /// `config.json` is not one that Attune runs.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// The caller's numbers do not fit together: an id outside the vocabulary, an empty batch, a cache of another model.
    #[error("{0}")]
    Input(String),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl ModelError {
    /// The memory ran out: the caller may try again with less.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        let text = match self {
            Self::Torch(refusal) => refusal.to_string(),
            _ => return false,
        };
        // The first is libtorch's CPU allocator, the second its CUDA allocator, the third `std::bad_alloc`.
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
