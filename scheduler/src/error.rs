//! The scheduler's errors. None of them is a user's fault: user errors become the job's error, and what is left here is
//! retried.

use attune_store::error::StoreError;

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

impl ProviderError {
    /// Returns whether the machine lacks something that it may have again soon: disk, memory, or a process slot.
    pub(crate) fn is_passing(&self) -> bool {
        use std::io::ErrorKind as K;
        self.cause.downcast_ref::<std::io::Error>().is_some_and(|cause| {
            matches!(cause.kind(), K::StorageFull | K::QuotaExceeded | K::OutOfMemory | K::WouldBlock)
        })
    }
}
