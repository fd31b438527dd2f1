//! Handlers of queue messages. Each reads the row that its message names, returns without an error if there is nothing
//! to do, and is idempotent.

use std::future::Future;

use attune_store::queue::Task;

use crate::{app::App, error::SchedulerError};

mod dispatch_job;
mod ensure_export;
mod ensure_replica;
mod text_folder;
mod validate_job;

/// A message that this process handles.
pub(crate) trait Handle: Task {
    /// Handles the message. An error is logged, and the reconciler sends the message again.
    fn handle(self, app: App) -> impl Future<Output = Result<(), SchedulerError>> + Send;
}
