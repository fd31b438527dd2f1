//! What the queues bring. Each task reads the row that its message names, returns quietly if there is nothing to do,
//! and is safe twice.

use std::future::Future;

use attune_store::queue::Task;

use crate::{app::App, error::SchedulerError};

mod dispatch_job;
mod ensure_replica;
mod plan_words;
mod scan;
mod text_folder;
mod validate_job;

/// A message that this process acts upon.
pub(crate) trait Handle: Task {
    /// Acts. An error is logged, and the reconciler sends the message again.
    fn handle(self, app: App) -> impl Future<Output = Result<(), SchedulerError>> + Send;
}
