//! The errors of a batch's worker.

use attune_domain::batch::{Defect, IllegalBatchStep};
use attune_inference::error::InferenceError;
use attune_store::{error::StoreError, files::staging::StagingError};

/// The number of consecutive attempts without progress after which a batch fails, if waiting does not fix the error.
const MOST_FAILURES: i32 = 3;

/// The number of consecutive attempts without progress after which a batch fails, whatever the error: with the pauses
/// between them, more than an hour.
pub(crate) const MOST_ATTEMPTS: i32 = 20;

/// The reason why a worker stopped executing a batch. A batch that has failed too often shows it to its user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    /// Another worker holds the batch.
    #[error("another worker holds the batch")]
    Stale,
    /// The step is illegal in the batch's state: it was cancelled in between.
    #[error("This is not possible in the current state: {0}.")]
    Step(IllegalBatchStep),
    /// The content of the input file does not exist any more.
    #[error("The content of the input file does not exist any more.")]
    InputGone,
    /// Requests remain whose model has no replica that could answer them.
    #[error("{0}")]
    Unavailable(InferenceError),
    /// The schedulers that executed the batch ended.
    #[error("The process that executed it ended each time.")]
    Interrupted,
    /// The input file could not be read, or a row or a file could not be written.
    #[error(transparent)]
    Failed(#[from] InferenceError),
}

impl BatchError {
    /// Creates an internal error.
    pub(crate) fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(InferenceError::internal(cause))
    }

    /// Returns whether the attempt only waited for replicas that still start or wait for a machine: it is no failure.
    pub(crate) const fn is_not_ready(&self) -> bool {
        matches!(self, Self::Unavailable(InferenceError::NotReady { .. }))
    }

    /// Returns the number of consecutive attempts without progress after which the batch fails.
    pub(crate) fn most_attempts(&self) -> i32 {
        match self {
            Self::InputGone => 1,
            Self::Step(_) => MOST_FAILURES,
            Self::Failed(error) if !error.is_passing() => MOST_FAILURES,
            Self::Stale | Self::Unavailable(_) | Self::Interrupted | Self::Failed(_) => MOST_ATTEMPTS,
        }
    }

    /// Returns the error as its user reads it, after so many consecutive attempts without progress.
    pub(crate) fn defect(&self, failures: i32) -> Defect {
        let message = || format!("The batch failed {failures} times in a row. {self}");
        match self {
            Self::InputGone => Defect::of_file("file_not_found", self),
            Self::Unavailable(_) => Defect::of_file("model_unavailable", message()),
            Self::Stale | Self::Step(_) | Self::Interrupted | Self::Failed(_) => {
                Defect::of_file("batch_failed", message())
            }
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
        for passing in [
            BatchError::from(StoreError::Stale),
            BatchError::from(StagingError::Refused { what: "batch's answers", cause: object() }),
            BatchError::from(object()),
            BatchError::internal(std::io::Error::other("a stream broke")),
            BatchError::Interrupted,
        ] {
            assert_eq!(passing.most_attempts(), MOST_ATTEMPTS, "{passing:?}");
        }
        assert_eq!(BatchError::internal("a panic").most_attempts(), MOST_FAILURES);
        assert_eq!(BatchError::from(StoreError::NotFound("file")).most_attempts(), MOST_FAILURES);
        assert_eq!(BatchError::InputGone.most_attempts(), 1);
    }

    #[test]
    fn a_user_reads_the_reason_why_a_batch_failed() {
        let message = "The model could not be served: no machine.".to_owned();
        let error = BatchError::Unavailable(InferenceError::ReplicaUnavailable { message, retry_after_seconds: 1 });
        let defect = error.defect(20);
        assert_eq!(defect.code, "model_unavailable");
        assert_eq!(defect.message, "The batch failed 20 times in a row. The model could not be served: no machine.");
        assert!(!error.is_not_ready());
        let late = InferenceError::NotReady { message: "late".into(), retry_after_seconds: 1 };
        assert!(BatchError::Unavailable(late).is_not_ready());
        assert_eq!(BatchError::InputGone.defect(1).code, "file_not_found");
    }

    #[test]
    fn a_user_is_shown_no_internal_cause() {
        let shown = BatchError::from(StoreError::NotFound("file")).to_string();
        assert_eq!(shown, "The server had an error while it processed the request.");
    }
}
