//! The errors of commands, and their exit codes.
//!
//! `docs/CLI.md` lists the codes; they do not change meaning.

use std::{io, path::Path};

/// The error of a command; its message is printed to stderr.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A failure on this machine: a file, a child process.
    #[error("{0}")]
    Failed(String),
    /// Wrong usage: the command line, or a file that it names, is not valid.
    #[error("{0}")]
    Usage(String),
    /// The API cannot be reached.
    #[error("cannot reach Attune at {url}: {reason}. `attune up` starts it on this machine.")]
    Unreachable {
        /// The API's address.
        url: String,
        /// The network error.
        reason: String,
    },
    /// The API refused the request.
    #[error("{message}")]
    Refused {
        /// The API's error message.
        message: String,
        /// The whole body, for `--json`.
        body: serde_json::Value,
    },
    /// The API found no such object.
    #[error("{message}")]
    NotFound {
        /// The API's error message.
        message: String,
        /// The whole body, for `--json`.
        body: serde_json::Value,
    },
    /// A job that was watched failed.
    #[error("job {id} failed: {reason}")]
    JobFailed {
        /// The job's ID.
        id: String,
        /// The job's error message.
        reason: String,
    },
    /// A job that was watched was cancelled.
    #[error("job {0} was cancelled")]
    JobCancelled(String),
    /// Another `attune up` holds the data folder.
    #[error("Attune is already running on {folder}{by}. Stop it first, or choose another folder with --data.")]
    AlreadyRunning {
        /// The data folder.
        folder: String,
        /// ` (process 12)`, the process that holds the folder, or empty if it is not known.
        by: String,
    },
    /// A second signal interrupted the graceful shutdown.
    #[error("stopped immediately by a second signal; unfinished writes may be lost")]
    Forced,
}

impl CliError {
    /// Returns the process's exit code.
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

    /// Returns the API's error body, if the error is a response of the API.
    pub(crate) const fn body(&self) -> Option<&serde_json::Value> {
        match self {
            Self::Refused { body, .. } | Self::NotFound { body, .. } => Some(body),
            _ => None,
        }
    }
}

/// The result of a command.
pub(crate) type Result<T> = std::result::Result<T, CliError>;

/// Adds the operation that failed to an error.
pub(crate) trait Doing<T> {
    /// Converts an error to [`CliError::Failed`]; `doing` completes "cannot …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| CliError::Failed(format!("cannot {}: {e}", doing())))
    }
}

/// Reads a file that the user named; a missing file is an error of usage.
pub(crate) fn read_named(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => CliError::Usage(format!("there is no file {}", path.display())),
        _ => CliError::Failed(format!("cannot read {}: {e}", path.display())),
    })
}
