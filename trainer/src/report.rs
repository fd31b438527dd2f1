//! The reporter: a task that takes events from a queue, numbers them, and posts them in order.
//!
//! A post without a response is retried unchanged for up to an hour: the platform ignores events that it already has,
//! and does not declare a run lost that could not reach it. Meanwhile the queue fills up. When it is full, the training
//! blocks, so memory stays bounded and no event is lost. The responses carry the only signals back: stop, or exit.

use std::time::Duration;

use attune_domain::run::{Directive, Reply, Report, RunEvent};
use attune_node::{NodeError, Platform};
use attune_process::failpoint::FailPoint;
use backon::{ExponentialBuilder, Retryable};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tracing::Instrument;

use crate::error::TrainerError;

/// The queue's capacity. The training blocks when it is full.
const QUEUE: usize = 4096;
/// The maximum number of events in one post.
const BATCH: usize = 256;
/// The time that an event waits for others to be posted with it.
const GATHERING: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// The time that the platform and the object store may be unavailable before the run exits. It is far longer than a
/// lease: a run that exits loses all work since its last checkpoint, and a run that waits only occupies its memory.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// Returns a backoff that retries for [`PATIENCE`], with delays of up to `longest`.
pub(crate) fn patience(longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(longest)
        .without_max_times()
        .with_total_delay(Some(PATIENCE))
        .with_jitter()
}

/// The platform's latest directive for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunStatus {
    Running,
    StopRequested,
    Ended,
}

/// The reporter's owner. There is one per run.
pub struct Reporter {
    events: EventSender,
    status: watch::Sender<RunStatus>,
    task: JoinHandle<bool>,
}

/// The handle of the run's phases: sends events and reads the platform's directive.
#[derive(Clone)]
pub struct EventSender {
    queue: mpsc::Sender<RunEvent>,
    status: watch::Receiver<RunStatus>,
}

impl Reporter {
    /// Starts the reporter task, which sends a heartbeat immediately.
    #[must_use]
    pub fn start(platform: Platform, run_lease: i64, heartbeat: Duration) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let (status, watched) = watch::channel(RunStatus::Running);
        let report_task = ReportTask { platform, run_lease, heartbeat, status: status.clone() };
        Self {
            events: EventSender { queue: sender, status: watched },
            status,
            task: tokio::spawn(report_task.run(events).in_current_span()),
        }
    }

    /// Returns the handle for the run's phases.
    #[must_use]
    pub const fn events(&self) -> &EventSender {
        &self.events
    }

    /// Stops the run as if the platform had requested it.
    pub fn request_stop(&self) {
        request_stop(&self.status);
    }

    /// Sends the last event and waits for the platform's response. Returns whether the platform accepted it.
    pub async fn finish(self, last: RunEvent) -> bool {
        // A closed queue means that the platform has ended the run; the task returns `false` then.
        let _ = self.events.queue.send(last).await;
        self.task.await.unwrap_or(false)
    }
}

impl EventSender {
    /// Queues an event, and blocks while the queue is full. Only for the tensor thread.
    ///
    /// # Errors
    /// [`TrainerError::Ended`].
    pub fn send(&self, event: RunEvent) -> Result<(), TrainerError> {
        self.queue.blocking_send(event).map_err(|_| TrainerError::Ended)
    }

    /// Returns whether the platform requested a stop. Cheap: reads a local value.
    ///
    /// # Errors
    /// [`TrainerError::Ended`].
    pub fn is_stop_requested(&self) -> Result<bool, TrainerError> {
        match *self.status.borrow() {
            RunStatus::Running => Ok(false),
            RunStatus::StopRequested => Ok(true),
            RunStatus::Ended => Err(TrainerError::Ended),
        }
    }

    /// Waits until a stop is requested or the run is ended.
    pub async fn stop_requested(&self) {
        self.until(|status| status != RunStatus::Running).await;
    }

    /// Waits until the run is ended.
    pub async fn ended(&self) {
        self.until(|status| status == RunStatus::Ended).await;
    }

    async fn until(&self, reached: impl Fn(RunStatus) -> bool) {
        if self.status.clone().wait_for(|status| reached(*status)).await.is_err() {
            // The reporter has finished after the last event: no further directive will arrive.
            std::future::pending::<()>().await;
        }
    }
}

fn request_stop(status: &watch::Sender<RunStatus>) {
    status.send_if_modified(|status| {
        let is_running = *status == RunStatus::Running;
        if is_running {
            *status = RunStatus::StopRequested;
        }
        is_running
    });
}

struct ReportTask {
    platform: Platform,
    run_lease: i64,
    heartbeat: Duration,
    status: watch::Sender<RunStatus>,
}

impl ReportTask {
    /// Posts events until the platform accepts the last one (`true`), or ends the run or the queue closes (`false`).
    async fn run(self, mut events: mpsc::Receiver<RunEvent>) -> bool {
        let mut first_sequence = 0;
        let mut patience = Duration::ZERO;
        loop {
            let batch = match timeout(patience, events.recv()).await {
                Ok(Some(first)) => gathered(first, &mut events).await,
                Ok(None) => return false,
                Err(_) => Vec::new(), // a bare heartbeat
            };
            let is_last = batch.last().is_some_and(RunEvent::is_last);
            let count = batch.len() as u64;
            let report = Report { run_lease: self.run_lease, first_sequence, events: batch };
            if count > 0 {
                FailPoint::ReportSend.before();
            }
            let reply = self.post(&report).await;
            if count > 0 {
                FailPoint::ReportSend.after();
            }
            match reply {
                Ok(Reply { directive: Directive::Continue }) => {}
                Ok(Reply { directive: Directive::Stop }) => request_stop(&self.status),
                Err(why) => {
                    tracing::error!(%why, "the platform accepts no more reports of this run; exiting");
                    self.status.send_replace(RunStatus::Ended);
                    return false;
                }
            }
            if is_last {
                return true;
            }
            first_sequence += count;
            patience = self.heartbeat;
        }
    }

    async fn post(&self, report: &Report) -> Result<Reply, NodeError> {
        let patience = patience(LONGEST_BACKOFF.min(self.heartbeat));
        (|| self.platform.post("/internal/run/reports", report))
            .retry(patience)
            .when(NodeError::is_passing)
            .notify(|why, wait| tracing::warn!(%why, wait_ms = wait.as_millis() as u64, "a report failed; retrying"))
            .await
    }
}

/// Collects `first` and the events that follow within [`GATHERING`], up to [`BATCH`] or the run's last event.
async fn gathered(first: RunEvent, events: &mut mpsc::Receiver<RunEvent>) -> Vec<RunEvent> {
    let deadline = Instant::now() + GATHERING;
    let mut batch = vec![first];
    while batch.len() < BATCH && !batch.last().is_some_and(RunEvent::is_last) {
        match timeout_at(deadline, events.recv()).await {
            Ok(Some(event)) => batch.push(event),
            Ok(None) | Err(_) => break,
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use backon::BackoffBuilder;

    use super::*;

    #[test]
    fn limit_the_platform_is_waited_for_an_hour() {
        let waited: Duration = patience(Duration::from_secs(10)).build().sum();
        assert!(waited > PATIENCE / 2 && waited <= PATIENCE, "{waited:?}");
    }
}
