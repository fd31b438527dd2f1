//! The phases of an export: downloads on tokio, everything else on the tensor thread.

use std::path::Path;

use attune_domain::run::{RunEvent, task::ExportTask};
use attune_node::{Cache, Platform, fetch};
use tokio::runtime::Handle;

use crate::{
    context::RunContext,
    error::TrainerError,
    exporting::{self, inputs::ExportInputs},
    report::EventSender,
    tensor_thread,
};

/// Writes an export and uploads it. Returns the task's last event.
///
/// # Errors
/// The reason that the task ends without an export.
pub(crate) async fn perform(
    task: ExportTask,
    platform: Platform,
    events: EventSender,
    cache_dir: &Path,
) -> Result<RunEvent, TrainerError> {
    let cache = Cache::open(cache_dir)?;
    let scratch = cache.scratch()?;
    let inputs = tokio::select! {
        () = events.stop_requested() => return Err(TrainerError::Stopped { step: 0 }),
        inputs = download(&platform, &task, &cache, scratch.path()) => inputs?,
    };
    let context = RunContext {
        platform,
        events,
        run_lease: task.run_lease,
        scratch: scratch.path().to_owned(),
        network: Handle::current(),
    };
    tensor_thread::perform(task.predicted_peak, move || exporting::export(&task, &inputs, &context)).await
}

async fn download(
    platform: &Platform,
    task: &ExportTask,
    cache: &Cache,
    scratch: &Path,
) -> Result<ExportInputs, TrainerError> {
    let client = platform.client();
    let base = cache.base(client, task.base.digest, &task.base.files).await?;
    let adapter = scratch.join("adapter");
    std::fs::create_dir_all(&adapter).map_err(TrainerError::io(&adapter))?;
    for file in &task.adapter {
        fetch(client, file, &adapter).await?;
    }
    let calibration = match &task.calibration {
        Some(file) => {
            let folder = scratch.join("calibration");
            std::fs::create_dir_all(&folder).map_err(TrainerError::io(&folder))?;
            Some(fetch(client, file, &folder).await?)
        }
        None => None,
    };
    let packed_base = cache.packed_base(task.base.digest, task.quantization)?;
    Ok(ExportInputs { base, packed_base, adapter, calibration })
}
