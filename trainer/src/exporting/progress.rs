//! The progress of an export's weights, reported in steps of some hundredths; between two tensors the platform may stop
//! the export.

use attune_domain::{bytes::Bytes, run::RunEvent};

use crate::{error::TrainerError, report::EventSender};

/// The number of reports over all weights, about.
const REPORTS: u64 = 50;

/// The progress of one export.
pub(super) struct Progress<'a> {
    events: &'a EventSender,
    reported: u64,
}

impl<'a> Progress<'a> {
    pub(super) fn new(events: &'a EventSender) -> Self {
        Self { events, reported: 0 }
    }

    /// Reports that `done` of `total` bytes are written, if that is news.
    ///
    /// # Errors
    /// [`TrainerError::Stopped`], [`TrainerError::Ended`].
    pub(super) fn at(&mut self, done: u64, total: u64) -> Result<(), TrainerError> {
        if self.events.is_stop_requested()? {
            return Err(TrainerError::Stopped { step: 0 });
        }
        if done == total || done.saturating_sub(self.reported) >= total / REPORTS {
            self.reported = done;
            self.events.send(RunEvent::Exporting { done: Bytes(done), total: Bytes(total) })?;
        }
        Ok(())
    }
}
