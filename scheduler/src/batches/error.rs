//! The errors of a batch's worker.

use attune_domain::batch::IllegalBatchStep;
use attune_inference::error::InferenceError;
use attune_store::{error::StoreError, files::staging::StagingError};

/// The reason why a worker stopped executing a batch. A batch that has failed too often shows it to its user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    /// Another worker holds the batch.
    #[error("another worker holds the batch")]
    Stale,
    /// The step is illegal in the batch's state: it was cancelled in between.
    #[error("This is not possible in the current state: {0}.")]
    Step(IllegalBatchStep),
    /// The input file could not be read, or a row or a file could not be written.
    #[error(transparent)]
    Failed(#[from] InferenceError),
}

impl BatchError {
    /// Creates an internal error.
    pub(crate) fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(InferenceError::internal(cause))
    }

    /// Returns whether the same work may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Stale => true,
            Self::Step(_) => false,
            Self::Failed(error) => error.is_passing(),
        }
    }
}

impl From<StoreError> for BatchError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stale => Self::Stale,
            StoreError::Batch(step) => Self::Step(step),
            other => Self::Failed(other.into()),
        }
    }
}

impl From<StagingError> for BatchError {
    fn from(error: StagingError) -> Self {
        match error {
            StagingError::Refused { what, cause } => Self::Failed(InferenceError::StorageRefused { what, cause }),
            StagingError::Store(error) => error.into(),
            StagingError::Task(panic) => Self::internal(panic),
            // The files of answers have no limit.
            too_large @ StagingError::TooLarge { .. } => Self::internal(too_large),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> StoreError {
        StoreError::object("put", "blob/a", std::io::Error::other("gone"))
    }

    #[test]
    fn only_errors_that_waiting_fixes_are_passing() {
        assert!(BatchError::from(StoreError::Stale).is_passing());
        assert!(BatchError::from(StagingError::Refused { what: "batch's answers", cause: object() }).is_passing());
        assert!(BatchError::from(object()).is_passing());
        assert!(BatchError::internal(std::io::Error::other("a stream broke")).is_passing());
        assert!(!BatchError::internal("a panic").is_passing());
        assert!(!BatchError::from(StoreError::NotFound("file")).is_passing());
    }

    #[test]
    fn a_user_is_shown_no_internal_cause() {
        let shown = BatchError::from(StoreError::NotFound("file")).to_string();
        assert_eq!(shown, "The server had an error while it processed the request.");
    }
}
