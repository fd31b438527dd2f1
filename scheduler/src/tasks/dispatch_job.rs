//! The wake-up of dispatch. The message only names a job; the rows are the queue.

use attune_store::queue::DispatchJob;

use super::Handle;
use crate::{app::App, dispatch::pass, error::SchedulerError};

impl Handle for DispatchJob {
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        pass::run(&app).await
    }
}
