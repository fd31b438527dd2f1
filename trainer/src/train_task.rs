//! The phases of a training.
//!
//! Network I/O runs on tokio, tensor operations on one thread of their own.

use std::path::Path;

use attune_domain::run::{RunEvent, task::TrainTask};
use attune_node::{Cache, Platform};
use tokio::runtime::Handle;

use crate::{
    context::RunContext,
    error::TrainerError,
    inputs::{Inputs, download_inputs},
    publishing::publish::publish,
    report::EventSender,
    setup::set_up,
    tensor_thread,
    train::train,
};

/// Trains an adapter and publishes it. Returns the run's last event.
///
/// # Errors
/// The reason that the run ends without an adapter.
pub(crate) async fn perform(
    spec: TrainTask,
    platform: Platform,
    events: EventSender,
    cache_dir: &Path,
) -> Result<RunEvent, TrainerError> {
    let cache = Cache::open(cache_dir)?;
    let scratch = cache.scratch()?;
    let inputs = tokio::select! {
        () = events.stop_requested() => {
            return Err(TrainerError::Stopped { step: spec.resume.as_ref().map_or(0, |r| r.step) });
        }
        inputs = download_inputs(&platform, &spec, &cache, scratch.path()) => inputs?,
    };
    let context = RunContext {
        platform,
        events,
        run_lease: spec.run.run_lease,
        scratch: scratch.path().to_owned(),
        network: Handle::current(),
    };
    let predicted = spec.plan.predicted_peak;
    tensor_thread::perform(predicted, move || work(spec, &inputs, &context)).await
}

/// Runs the phases on the tensor thread.
fn work(spec: TrainTask, inputs: &Inputs, context: &RunContext) -> Result<RunEvent, TrainerError> {
    let mut session = tracing::info_span!("set_up").in_scope(|| set_up(spec, inputs, &context.scratch))?;
    tracing::info_span!("train").in_scope(|| train(&mut session, context))?;
    tracing::info_span!("publish").in_scope(|| publish(session, inputs, context))
}
