//! The one voice of a run: a task that takes events from a queue, numbers them, and posts them in order.
//!
//! A post that was not answered is repeated unchanged until it is, for an hour: the platform drops what it has already, and
//! gives nobody up who could not reach it. Meanwhile the queue fills, and when it is full the training waits, so memory stays bounded and no
//! event is lost. The answers carry the only way back: to stop, or to leave.

use std::time::Duration;

use attune_domain::run::{Directive, Reply, Report, RunEvent};
use attune_node::{NodeError, Platform};
use backon::{ExponentialBuilder, Retryable};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::error::TrainerError;

/// Events that may wait before the training does.
const QUEUE: usize = 4096;
/// Events of one post.
const BATCH: usize = 256;
/// How long an event waits for company.
const GATHERING: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// How long the platform and the object store may be away before a run leaves. Far longer than a lease: a run that leaves
/// loses all since its last checkpoint, and one that waits for nothing only its memory's use.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// Tries again and again for [`PATIENCE`], with pauses of up to `longest`.
pub(crate) fn patience(longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(longest)
        .without_max_times()
        .with_total_delay(Some(PATIENCE))
        .with_jitter()
}

/// How the run stands with the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    GoingOn,
    StopAsked,
    Ended,
}

/// The reporter's handle. There is one per run.
pub struct Reporter {
    voice: Voice,
    task: JoinHandle<bool>,
}

/// What the phases of a run hold: they say things, and ask whether to go on.
#[derive(Clone)]
pub struct Voice {
    events: mpsc::Sender<RunEvent>,
    standing: watch::Receiver<Standing>,
}

impl Reporter {
    /// Starts to report, at once with a heartbeat.
    #[must_use]
    pub fn start(platform: Platform, run_lease: i64, heartbeat: Duration) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let (standing, watched) = watch::channel(Standing::GoingOn);
        let teller = Teller { platform, run_lease, heartbeat, standing };
        Self { voice: Voice { events: sender, standing: watched }, task: tokio::spawn(teller.tell(events)) }
    }

    /// A handle to speak with.
    #[must_use]
    pub const fn voice(&self) -> &Voice {
        &self.voice
    }

    /// Says the last event and waits until the platform has taken it; `false` if it did not want it.
    pub async fn finish(self, last: RunEvent) -> bool {
        // A closed queue means that the platform has ended the run, which the task's answer says too.
        let _ = self.voice.events.send(last).await;
        self.task.await.unwrap_or(false)
    }
}

impl Voice {
    /// Queues an event; waits while the queue is full. For the training's own thread.
    ///
    /// # Errors
    /// [`TrainerError::Ended`].
    pub fn say(&self, event: RunEvent) -> Result<(), TrainerError> {
        self.events.blocking_send(event).map_err(|_| TrainerError::Ended)
    }

    /// A stop was asked for. Cheap.
    ///
    /// # Errors
    /// [`TrainerError::Ended`].
    pub fn is_stop_asked(&self) -> Result<bool, TrainerError> {
        match *self.standing.borrow() {
            Standing::GoingOn => Ok(false),
            Standing::StopAsked => Ok(true),
            Standing::Ended => Err(TrainerError::Ended),
        }
    }

    /// Waits until a stop is asked for, or the run is ended.
    pub async fn stop_asked(&self) {
        self.until(|standing| standing != Standing::GoingOn).await;
    }

    /// Waits until the run is ended.
    pub async fn ended(&self) {
        self.until(|standing| standing == Standing::Ended).await;
    }

    async fn until(&self, reached: impl Fn(Standing) -> bool) {
        if self.standing.clone().wait_for(|standing| reached(*standing)).await.is_err() {
            // The reporter has ended well, after the last event: nothing will be asked any more.
            std::future::pending::<()>().await;
        }
    }
}

struct Teller {
    platform: Platform,
    run_lease: i64,
    heartbeat: Duration,
    standing: watch::Sender<Standing>,
}

impl Teller {
    /// Tells events until the last is taken (`true`), or the platform wants no more (`false`).
    async fn tell(self, mut events: mpsc::Receiver<RunEvent>) -> bool {
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
            match self.post(&report).await {
                Ok(Reply { directive: Directive::Continue }) => {}
                Ok(Reply { directive: Directive::Stop }) => {
                    self.standing
                        .send_if_modified(|s| std::mem::replace(s, Standing::StopAsked) != Standing::StopAsked);
                }
                Err(why) => {
                    tracing::error!(%why, "the platform takes no more reports of this run; leaving");
                    self.standing.send_replace(Standing::Ended);
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
            .notify(|why, wait| tracing::warn!(%why, wait_ms = wait.as_millis() as u64, "a report was not taken; trying again"))
            .await
    }
}

/// `first` and what comes soon after it, up to the last event there is.
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
