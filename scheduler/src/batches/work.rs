//! A batch from its claim to its end. The worker renews its lease in the batch's row, by the database's clock. A worker
//! whose lease was lost finds that at its next write and leaves the batch to its new holder.

use std::{panic::AssertUnwindSafe, time::Duration};

use attune_domain::batch::{BatchEvent, BatchState};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    batches::{
        batch, batch_answer,
        batch_queue::{self, Claimed, Claims, Standing},
    },
    error::StoreError,
};
use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::batches::{
    ask,
    context::Batches,
    error::{BatchError, MOST_ATTEMPTS},
    held::{Held, Now, STALE_SECONDS},
    lines::{Line, Lines},
    output::{self, Ending},
    plan, rows, validation,
};

/// The maximum number of batches that one process executes concurrently: the number of workers. One more worker ends
/// batches that were cancelled or have expired.
pub(crate) const WORKERS: usize = 4;

/// The interval between two searches for a batch that no worker holds.
const LOOK: Duration = Duration::from_secs(1);

/// The interval between two heartbeats; without any for [`STALE_SECONDS`], a worker loses its lease.
const BEAT: Duration = Duration::from_secs(3);

/// Executes batches, one at a time, until `stop`. What is in progress then is executed again by the next worker.
pub(crate) async fn work(batches: Batches, claims: Claims, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // A separate task, so that a panic ends only that task.
        match AbortOnDropHandle::new(tokio::spawn(one(batches.clone(), claims, stop.clone()))).await {
            Ok(Ok(true)) => continue,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!("a batch worker failed: {}", chain(&error)),
            Err(panic) => tracing::error!("a batch worker panicked: {panic}"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Executes one waiting batch; returns whether there was one.
///
/// # Errors
/// Any [`BatchError`]. The batch is released, or has failed.
pub(crate) async fn one(batches: Batches, claims: Claims, stop: CancellationToken) -> Result<bool, BatchError> {
    let worker = Uuid::new_v4();
    let mut tx = batches.leader.begin(&batches.inference.db).await?;
    let claimed = batch_queue::claim(&mut tx, worker, STALE_SECONDS, claims).await?;
    tx.commit_at(FailPoint::BatchClaim).await?;
    let Some(Claimed { batch, failures }) = claimed else { return Ok(false) };
    let now = Now { standing: Standing { state: batch.state, is_late: false }, turn_is_over: false };
    let held = Held { batches, batch, worker };
    if failures >= MOST_ATTEMPTS {
        held.fail(failures, &BatchError::Interrupted).await?;
        return Ok(true);
    }
    let (told, hears) = watch::channel(now);
    // A separate task, because a task holds at most one connection at a time.
    let mut beating = AbortOnDropHandle::new(tokio::spawn(beat(held.clone(), told)));
    let work = Box::pin(held.through(hears));
    let worked = tokio::select! {
        // A separate task would outlive a lost lease; a panic is caught here instead.
        worked = AssertUnwindSafe(work).catch_unwind() => {
            worked.unwrap_or_else(|_| Err(BatchError::internal("the batch worker panicked")))
        }
        error = &mut beating => Err(error.unwrap_or_else(BatchError::internal)),
        () = stop.cancelled() => return held.give_back().await.map(|()| false),
    };
    if let Err(error) = &worked {
        held.broke_off(error).await?;
    }
    worked.map(|()| true)
}

/// Sends heartbeats until the lease is lost.
async fn beat(held: Held, told: watch::Sender<Now>) -> BatchError {
    loop {
        tokio::time::sleep(BEAT).await;
        match held.now().await {
            Ok(now) => drop(told.send_replace(now)),
            Err(BatchError::Stale) => return BatchError::Stale,
            // The database may be unavailable briefly; if it is for longer, the lease expires by its clock.
            Err(error) => tracing::warn!(batch.id = %held.batch.batch_id, "no heartbeat: {}", chain(&error)),
        }
    }
}

impl Held {
    /// Releases the batch after an attempt that failed; ends it after too many of them without progress. One that only
    /// waited for a replica counts among none.
    async fn broke_off(&self, error: &BatchError) -> Result<(), BatchError> {
        let mut tx = self.batches.inference.platform().await?;
        if error.is_not_ready() {
            batch_queue::postpone(&mut tx, self.batch.batch_id, self.worker).await?;
            return Ok(tx.commit().await?);
        }
        let failures = batch_queue::broke_off(&mut tx, self.batch.batch_id, self.worker).await?;
        tx.commit().await?;
        match failures {
            Some(failures) if failures >= error.most_attempts() => self.fail(failures, error).await,
            Some(_) => self.give_back().await,
            None => Ok(()),
        }
    }

    /// Fails the batch. The answers so far are in its files, unless these cannot be written.
    async fn fail(&self, failures: i32, error: &BatchError) -> Result<(), BatchError> {
        let (inference, id) = (&self.batches.inference, self.batch.batch_id);
        tracing::error!(batch.id = %id, failures, "a batch has failed: {}", chain(error));
        let defect = error.defect(failures);
        let ending = Ending { event: BatchEvent::GivenUp, defect: Some(defect.clone()) };
        match Box::pin(output::finish(inference, &self.batch, self.worker, ending)).await {
            Err(stale @ BatchError::Stale) => return Err(stale),
            Err(error) => tracing::error!(batch.id = %id, "its files could not be written: {}", chain(&error)),
            Ok(()) => return Ok(()),
        }
        let mut tx = inference.platform().await?;
        batch::give_up(&mut tx, id, self.worker, &defect).await?;
        Ok(tx.commit().await?)
    }

    /// Executes the batch to its end, or to the end of its project's turn.
    async fn through(&self, hears: watch::Receiver<Now>) -> Result<(), BatchError> {
        if self.batch.state == BatchState::Validating
            && !self.now().await?.standing.is_late
            && !self.is_accepted().await?
        {
            return Ok(());
        }
        let now = self.now().await?;
        if now.standing.state == BatchState::InProgress && !now.standing.is_late {
            let is_answered = rows::execute(self, &hears).await?;
            if !is_answered && !self.now().await?.ends() {
                return self.give_back().await;
            }
        }
        self.end().await
    }

    /// Validates the input file. Returns `false` if it was refused, which ended the batch.
    async fn is_accepted(&self) -> Result<bool, BatchError> {
        let (inference, id) = (&self.batches.inference, self.batch.batch_id);
        let checked = validation::check(inference, &self.batch).await?;
        let mut tx = inference.platform().await?;
        let is_accepted = checked.is_ok();
        let stepped = match checked {
            Ok(total) => batch::accept(&mut tx, id, self.worker, total).await,
            Err(defects) => {
                tracing::info!(batch.id = %id, "the file of a batch is refused");
                batch::refuse(&mut tx, id, self.worker, &defects).await
            }
        };
        match stepped {
            Ok(()) => {
                tx.commit_at(FailPoint::BatchValidate).await?;
                Ok(is_accepted)
            }
            Err(StoreError::Batch(_)) => Ok(true), // the batch was cancelled first
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the batch after its last request: writes the files and makes the final transition.
    async fn end(&self) -> Result<(), BatchError> {
        let (inference, batch, worker) = (&self.batches.inference, &self.batch, self.worker);
        let now = self.now().await?.standing;
        let event = match now.state {
            BatchState::Cancelling => BatchEvent::Stopped,
            _ if now.is_late => {
                self.late_lines().await?;
                BatchEvent::TimeUp
            }
            BatchState::InProgress => {
                let mut tx = inference.platform().await?;
                batch::step(&mut tx, batch.batch_id, Some(worker), BatchEvent::AnswersComplete).await?;
                tx.commit_at(FailPoint::BatchAnswered).await?;
                BatchEvent::FilesWritten
            }
            _ => BatchEvent::FilesWritten,
        };
        match output::finish(inference, batch, worker, event.into()).await {
            // A cancel arrived in between: the files are written again, as those of a cancelled batch.
            Err(BatchError::Step(_)) => output::finish(inference, batch, worker, BatchEvent::Stopped.into()).await,
            done => done,
        }
    }

    /// Answers the requests that were not executed in time with an error.
    async fn late_lines(&self) -> Result<(), BatchError> {
        let (inference, batch) = (&self.batches.inference, &self.batch);
        let answered = plan::answered(inference, batch).await?;
        let mut lines = Lines::open(inference, batch).await?;
        while let Some(Line::Text(line, text)) = lines.next().await? {
            if answered.contains(&line) {
                continue;
            }
            let answer = ask::too_late(line, &text, batch.endpoint);
            let mut tx = inference.platform().await?;
            batch_answer::answer(&mut tx, batch.batch_id, self.worker, &answer).await?;
            tx.commit_at(FailPoint::BatchAnswer).await?;
        }
        Ok(())
    }
}
