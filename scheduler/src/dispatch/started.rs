//! The results of starts.

/// The result of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// The trainer was launched, or the job does not wait any more.
    Done,
    /// The job did not take its place: the queue is planned again.
    Skipped,
    /// The job was paused instead. Its place stays free, so the other starts of the plan are still possible.
    Paused,
    /// The job's rows could not be read or written. It waits, and its place stays free.
    Broken,
    /// The provider could not launch the trainer.
    Failed,
}

impl Started {
    /// Returns the name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Done => "started",
            Self::Skipped => "skipped",
            Self::Paused => "paused",
            Self::Broken | Self::Failed => "failed",
        }
    }
}
