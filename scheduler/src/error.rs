//! What can go wrong while the scheduler works. Nothing of it is a user's fault: such things end as a job's error, and
//! what is left here is tried again.

use attune_store::error::StoreError;

/// Why a task or a pass of the reconciler did not get to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchedulerError {
    /// A row or an object could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A provider does not answer.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A file of this machine could not be written.
    #[error("{path} cannot be written")]
    File {
        /// Which.
        path: String,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
    /// Work on a thread of its own panicked.
    #[error("a worker thread died")]
    Thread(#[from] tokio::task::JoinError),
}

/// Why a provider could not launch or stop something.
#[derive(Debug, thiserror::Error)]
#[error("{action} failed")]
pub(crate) struct ProviderError {
    /// What was tried: `starting attune-trainer`.
    pub(crate) action: String,
    /// What the system says.
    #[source]
    pub(crate) cause: std::io::Error,
}

impl ProviderError {
    /// The machine lacks something that it may have again in a moment: disk, memory, or room for a process.
    pub(crate) fn is_passing(&self) -> bool {
        use std::io::ErrorKind as K;
        matches!(self.cause.kind(), K::StorageFull | K::QuotaExceeded | K::OutOfMemory | K::WouldBlock)
    }
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
