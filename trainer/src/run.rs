//! A run from its first request to its last event, whatever its task is.

use std::{path::Path, pin::pin, time::Duration};

use attune_domain::run::{CONTRACT_VERSION, RunEvent, task::TaskSpec};
use attune_node::{NodeError, Platform, http_client};
use attune_process::telemetry;
use backon::Retryable;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use tracing::Instrument;

use crate::{
    config::Config,
    error::TrainerError,
    export_task,
    report::{EventSender, Reporter, patience},
    train_task,
};

/// The time that the tensor thread has to stop after the platform has ended the run.
const GRACE: Duration = Duration::from_secs(10);

/// The time in which the platform must accept the last event of an interrupted run, whose node ends soon.
const LAST_EVENT_LIMIT: Duration = Duration::from_secs(20);

/// The end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// The platform accepted the last event.
    Accepted,
    /// The platform accepts no events of the run any more.
    Refused,
    /// The process received SIGTERM: its node ends soon. The run was stopped, after a checkpoint if there was time.
    Interrupted,
}

/// Executes the run.
///
/// # Errors
/// No run exists for this token, or the platform is unreachable. The error can only be logged.
pub async fn run(config: Config) -> Result<RunEnd, TrainerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|why| TrainerError::Internal(why.to_string()))?;
    let platform = Platform::new(http_client()?, &config.api_url, config.token);
    let task = tokio::select! {
        task = fetch_task(&platform) => task?,
        _ = terminate.recv() => return Ok(RunEnd::Interrupted),
    };
    let span = match &task {
        TaskSpec::Train(task) => tracing::info_span!("run", job.id = %task.run.job_id, run.id = %task.run.run_id),
        TaskSpec::Export(task) => tracing::info_span!("export", export.id = %task.export_id),
    };
    if let Some(parent) = task.terms().traceparent {
        telemetry::continue_trace(&span, &parent.to_string());
    }
    Box::pin(follow(task, platform, &config.cache_dir, terminate)).instrument(span).await
}

/// Performs the task and reports. On SIGTERM, the run stops as if the platform had requested it.
async fn follow(
    task: TaskSpec,
    platform: Platform,
    cache_dir: &Path,
    mut terminate: Signal,
) -> Result<RunEnd, TrainerError> {
    let terms = task.terms();
    tracing::info!("a task for {}", task.subject());
    let heartbeat = Duration::from_secs(terms.heartbeat_seconds.max(1));
    let reporter = Reporter::start(platform.clone(), terms.run_lease, heartbeat);
    let events = reporter.events().clone();
    let mut performing = pin!(perform(task, platform, events.clone(), cache_dir));
    let mut is_interrupted = false;
    let outcome = loop {
        tokio::select! {
            () = ended_long_ago(&events) => break Err(TrainerError::Ended),
            outcome = &mut performing => break outcome,
            Some(()) = terminate.recv(), if !is_interrupted => {
                tracing::warn!("SIGTERM: the run stops with a checkpoint");
                is_interrupted = true;
                reporter.request_stop();
            }
        }
    };
    let last = match outcome {
        Ok(published) => published,
        Err(why) => {
            tracing::error!(%why, "the run ends");
            let Some(last) = why.last_event() else { return Ok(RunEnd::Refused) };
            last
        }
    };
    if !is_interrupted {
        return Ok(if reporter.finish(last).await { RunEnd::Accepted } else { RunEnd::Refused });
    }
    let is_stop = matches!(last, RunEvent::Stopped { .. });
    let is_accepted = timeout(LAST_EVENT_LIMIT, reporter.finish(last)).await.unwrap_or(false);
    Ok(if is_accepted && !is_stop { RunEnd::Accepted } else { RunEnd::Interrupted })
}

/// Resolves [`GRACE`] after the platform has ended the run. The tensor thread notices the end itself, but is not
/// awaited without limit.
async fn ended_long_ago(events: &EventSender) {
    events.ended().await;
    tokio::time::sleep(GRACE).await;
}

async fn fetch_task(platform: &Platform) -> Result<TaskSpec, NodeError> {
    (|| platform.get("/internal/run/spec"))
        .retry(patience(Duration::from_secs(10)))
        .when(NodeError::is_passing)
        .notify(|why, _| tracing::warn!(%why, "fetching the run's spec failed; retrying"))
        .await
}

/// Performs the task. Returns the run's last event.
async fn perform(
    task: TaskSpec,
    platform: Platform,
    events: EventSender,
    cache_dir: &Path,
) -> Result<RunEvent, TrainerError> {
    let theirs = task.terms().version;
    if theirs != CONTRACT_VERSION {
        return Err(TrainerError::ContractVersion { theirs });
    }
    match task {
        TaskSpec::Train(task) => train_task::perform(task, platform, events, cache_dir).await,
        TaskSpec::Export(task) => export_task::perform(task, platform, events, cache_dir).await,
    }
}
