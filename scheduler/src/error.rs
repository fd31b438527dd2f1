//! The scheduler's errors. None of them is a user's fault: user errors become the job's error, and what is left here is
//! retried.

use attune_dataprep::text_folder::FolderError;
use attune_store::error::StoreError;

use crate::providers::kubernetes::error::KubernetesError;

/// An error of a task or of a pass of the reconciler.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchedulerError {
    /// A row or an object could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A provider operation failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A file on this machine could not be written.
    #[error("{path} cannot be written")]
    File {
        /// The file's path.
        path: String,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// A blocking task panicked.
    #[error("a worker thread panicked")]
    Thread(#[from] tokio::task::JoinError),
}

impl From<FolderError> for SchedulerError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Store(error) => error.into(),
            FolderError::File { path, cause } => Self::File { path, cause },
        }
    }
}

/// An error of a provider's operation.
#[derive(Debug, thiserror::Error)]
#[error("{action} failed")]
pub(crate) struct ProviderError {
    /// The action that failed: `starting attune-trainer`.
    pub(crate) action: String,
    /// The cause: for the local provider, the operating system's error.
    #[source]
    pub(crate) cause: Box<dyn std::error::Error + Send + Sync>,
}

/// A provider did not answer in time, or recently did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it did not answer within {seconds} s")]
pub(crate) struct Late {
    /// The time limit.
    pub(crate) seconds: u64,
}

/// A command of a cluster that failed, or whose answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    /// The command cannot be started.
    #[error("{command} cannot be started: {why}")]
    NotStarted {
        /// The command's name.
        command: String,
        /// The operating system's error.
        why: String,
    },
    /// The command did not exit in time, and was killed.
    #[error("{command} did not answer within {seconds} s")]
    Late {
        /// The command's name.
        command: String,
        /// The time that it had.
        seconds: u64,
    },
    /// The command printed too much, and was killed.
    #[error("{command} printed more than {bytes} bytes")]
    TooLong {
        /// The command's name.
        command: String,
        /// The size of the largest answer.
        bytes: u64,
    },
    /// The command exited with an error.
    #[error("{command} ended with {status}: {message}")]
    Failed {
        /// The command's name.
        command: String,
        /// The exit status.
        status: String,
        /// The end of its error output, without control characters.
        message: String,
    },
    /// The answer has another form than the command documents.
    #[error("the answer of {command} cannot be read: {why}")]
    Unreadable {
        /// The command's name.
        command: String,
        /// The parser's error.
        why: String,
    },
}

impl ProviderError {
    /// Returns whether the job is not at fault: the machine lacks something that it may have again soon, such as disk,
    /// memory, or a process slot, or a cluster does not accept the process.
    pub(crate) fn is_passing(&self) -> bool {
        use std::io::ErrorKind as K;
        self.cause.is::<CommandError>()
            || self.cause.is::<KubernetesError>()
            || self.is_late()
            || self.cause.downcast_ref::<std::io::Error>().is_some_and(|cause| {
                matches!(cause.kind(), K::StorageFull | K::QuotaExceeded | K::OutOfMemory | K::WouldBlock)
            })
    }

    /// Returns whether the provider did not answer in time.
    pub(crate) fn is_late(&self) -> bool {
        self.late().is_some()
    }

    /// Returns the time limit within which the provider did not answer; `None`: it answered.
    pub(crate) fn late(&self) -> Option<Late> {
        self.cause.downcast_ref::<Late>().copied()
    }
}
