//! A run from its first request to its last event, whatever its task is.

use std::{path::Path, time::Duration};

use attune_domain::run::{CONTRACT_VERSION, RunEvent, task::TaskSpec};
use attune_node::{NodeError, Platform, http_client};
use backon::Retryable;

use crate::{
    config::Config,
    error::TrainerError,
    report::{EventSender, Reporter, patience},
    train_task,
};

/// The time that the tensor thread has to stop after the platform has ended the run.
const GRACE: Duration = Duration::from_secs(10);

/// Executes the run. Returns whether the platform accepted the last event.
///
/// # Errors
/// No run exists for this token, or the platform is unreachable. The error can only be logged.
pub async fn run(config: Config) -> Result<bool, TrainerError> {
    let platform = Platform::new(http_client()?, &config.api_url, config.token);
    let task = fetch_task(&platform).await?;
    let run = *task.run();
    tracing::info!(job.id = %run.job_id, run.id = %run.run_id, "run {} of job {}", run.run_id, run.job_id);
    let heartbeat = Duration::from_secs(run.heartbeat_seconds.max(1));
    let reporter = Reporter::start(platform.clone(), run.run_lease, heartbeat);
    let events = reporter.events().clone();
    let outcome = tokio::select! {
        () = ended_long_ago(&events) => Err(TrainerError::Ended),
        outcome = perform(task, platform, events.clone(), &config.cache_dir) => outcome,
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
    let theirs = task.run().version;
    if theirs != CONTRACT_VERSION {
        return Err(TrainerError::ContractVersion { theirs });
    }
    match task {
        TaskSpec::Train(task) => train_task::perform(task, platform, events, cache_dir).await,
    }
}
