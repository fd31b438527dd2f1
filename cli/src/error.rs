//! What can go wrong, and the exit code that says so to a script.
//!
//! `docs/CLI.md` lists the codes; they do not change meaning.

use std::{io, path::Path};

/// Why a command ended badly. Shown as one sentence on stderr.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Something on this machine: a file, a child process.
    #[error("{0}")]
    Failed(String),
    /// The command line, or a file named on it, asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// No answer from the API.
    #[error("cannot reach Attune at {url}: {reason}. Is it up? `attune up` starts it on this machine.")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The API said no.
    #[error("{message}")]
    Refused {
        /// The API's sentence.
        message: String,
        /// The whole body, for `--json`.
        body: serde_json::Value,
    },
    /// The API knows nothing of that name.
    #[error("{message}")]
    NotFound {
        /// The API's sentence.
        message: String,
        /// The whole body, for `--json`.
        body: serde_json::Value,
    },
    /// A job that was watched failed.
    #[error("job {id} failed: {reason}")]
    JobFailed {
        /// Which.
        id: String,
        /// The job's own error.
        reason: String,
    },
    /// A job that was watched was cancelled.
    #[error("job {0} was cancelled")]
    JobCancelled(String),
    /// Another `attune up` holds the data folder.
    #[error("Attune is already up on {folder}{by}; stop that one first, or choose another folder with --data")]
    AlreadyRunning {
        /// The folder.
        folder: String,
        /// ` (process 12)`, where it is known.
        by: String,
    },
    /// A second signal cut the orderly stop short.
    #[error("stopped at once, as asked; what was being written may be lost")]
    Forced,
}

impl CliError {
    /// The process's exit code.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Forced => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Refused { .. } => 4,
            Self::NotFound { .. } => 5,
            Self::JobFailed { .. } => 6,
            Self::JobCancelled(_) => 7,
            Self::AlreadyRunning { .. } => 8,
        }
    }

    /// The API's error body, if the API said it.
    pub(crate) const fn body(&self) -> Option<&serde_json::Value> {
        match self {
            Self::Refused { body, .. } | Self::NotFound { body, .. } => Some(body),
            _ => None,
        }
    }
}

/// What every command gives.
pub(crate) type Result<T> = std::result::Result<T, CliError>;

/// Turns an outside error into a sentence that says what was being done.
pub(crate) trait Doing<T> {
    /// `doing` completes "cannot …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| CliError::Failed(format!("cannot {}: {e}", doing())))
    }
}

/// Reads a file that the user named: its absence is a matter of usage.
pub(crate) fn read_named(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => CliError::Usage(format!("there is no file {}", path.display())),
        _ => CliError::Failed(format!("cannot read {}: {e}", path.display())),
    })
}
