//! A run from its first request to its last event.
//!
//! Network I/O runs on tokio, tensor operations on one thread of their own. Any failure on that thread, a panic inside
//! libtorch included, becomes the run's last event.

use std::{any::Any, path::Path, time::Duration};

use attune_domain::run::{CONTRACT_VERSION, RunEvent, RunSpec};
use attune_node::{Cache, NodeError, Platform, http_client};
use backon::Retryable;
use tokio::runtime::Handle;

use crate::{
    config::Config,
    context::RunContext,
    error::{TrainerError, without_frames},
    inputs::{Inputs, download_inputs},
    memory,
    publishing::publish::publish,
    report::{EventSender, Reporter, patience},
    setup::set_up,
    train::train,
};

/// The time that the tensor thread has to stop after the platform has ended the run.
const GRACE: Duration = Duration::from_secs(10);

/// Executes the run. Returns whether the platform accepted the last event.
///
/// # Errors
/// No run exists for this token, or the platform is unreachable. The error can only be logged.
pub async fn run(config: Config) -> Result<bool, TrainerError> {
    let platform = Platform::new(http_client()?, &config.api_url, config.token);
    let spec = fetch_spec(&platform).await?;
    tracing::info!(job.id = %spec.job_id, run.id = %spec.run_id, "run {} of job {}", spec.run_id, spec.job_id);
    let heartbeat = Duration::from_secs(spec.heartbeat_seconds.max(1));
    let reporter = Reporter::start(platform.clone(), spec.run_lease, heartbeat);
    let events = reporter.events().clone();
    let outcome = tokio::select! {
        () = ended_long_ago(&events) => Err(TrainerError::Ended),
        outcome = phases(platform, spec, events.clone(), &config.cache_dir) => outcome,
    };
    let last = match outcome {
        Ok(published) => published,
        Err(why) => {
            tracing::error!(%why, "the run ends");
            let Some(last) = why.last_event() else { return Ok(false) };
            last
        }
    };
    Ok(reporter.finish(last).await)
}

/// Resolves [`GRACE`] after the platform has ended the run. The tensor thread notices the end itself, but is not
/// awaited without limit.
async fn ended_long_ago(events: &EventSender) {
    events.ended().await;
    tokio::time::sleep(GRACE).await;
}

async fn fetch_spec(platform: &Platform) -> Result<RunSpec, NodeError> {
    (|| platform.get("/internal/run/spec"))
        .retry(patience(Duration::from_secs(10)))
        .when(NodeError::is_passing)
        .notify(|why, _| tracing::warn!(%why, "fetching the run's spec failed; retrying"))
        .await
}

async fn phases(
    platform: Platform,
    spec: RunSpec,
    events: EventSender,
    cache_dir: &Path,
) -> Result<RunEvent, TrainerError> {
    if spec.version != CONTRACT_VERSION {
        return Err(TrainerError::ContractVersion { theirs: spec.version });
    }
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
        run_lease: spec.run_lease,
        scratch: scratch.path().to_owned(),
        network: Handle::current(),
    };
    let predicted = spec.plan.predicted_peak;
    let working = tokio::task::spawn_blocking(move || work(spec, &inputs, &context));
    let outcome = working.await.unwrap_or_else(|fault| match fault.try_into_panic() {
        Ok(panic) => Err(TrainerError::Internal(format!("the trainer panicked: {}", words_of(&*panic)))),
        Err(fault) => Err(TrainerError::Internal(fault.to_string())),
    });
    outcome.map_err(|why| match why {
        TrainerError::Model(refusal) if refusal.is_out_of_memory() => {
            tracing::error!(refusal = without_frames(&refusal.to_string()), "libtorch ran out of memory");
            TrainerError::OutOfMemory { predicted, available: memory::available(), peak: memory::peak() }
        }
        other => other,
    })
}

/// Runs the run's phases on the tensor thread.
fn work(spec: RunSpec, inputs: &Inputs, context: &RunContext) -> Result<RunEvent, TrainerError> {
    let mut session = set_up(spec, inputs, &context.scratch)?;
    train(&mut session, context)?;
    publish(session, inputs, context)
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
