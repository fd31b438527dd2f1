//! A batch from its claim to its end. The worker renews its lease in the batch's row, by the database's clock. A worker
//! whose lease was lost finds that at its next write and leaves the batch to its new holder.

use std::{collections::HashSet, sync::Arc, time::Duration};

use attune_domain::{
    batch::{BatchEvent, BatchState, Defect},
    id::BatchId,
};
use attune_inference::{context::Inference, metering::Meter};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    batches::{
        batch::{self, Batch},
        batch_queue::{self, Standing},
    },
    error::StoreError,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::batches::{
    ask::{self, Asked},
    error::BatchError,
    lines::{Line, Lines},
    output, validation,
};

/// The maximum number of batches that one process executes concurrently: the number of workers.
pub(crate) const WORKERS: usize = 4;

/// The maximum number of concurrent requests of one batch.
const ROWS: usize = 4;

/// The interval between two searches for a batch that no worker holds.
const LOOK: Duration = Duration::from_secs(1);

/// The interval between two heartbeats, and the time without heartbeats after which a worker loses its lease.
const BEAT: Duration = Duration::from_secs(3);
const STALE_SECONDS: f64 = 12.0;

/// The time that running requests have to finish once it is another project's turn; unfinished ones are executed again
/// later.
const TURN_GRACE: Duration = Duration::from_secs(10);

/// The number of consecutive failures after which a batch fails, if the last error is not a transient one.
const MOST_FAILURES: i32 = 3;

/// The batch's state, as of the last heartbeat.
#[derive(Debug, Clone, Copy)]
struct Now {
    standing: Standing,
    /// True once it is another project's turn.
    turn_is_over: bool,
}

/// Executes batches, one at a time, until `stop`. What is in progress then is executed again by the next worker.
pub(crate) async fn work(inference: Inference, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = execute(inference) => {}
    }
}

/// Executes batches without end.
async fn execute(inference: Inference) {
    loop {
        // A separate task, so that a panic ends only that task.
        match AbortOnDropHandle::new(tokio::spawn(one(inference.clone()))).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => tokio::time::sleep(LOOK).await,
            Ok(Err(error)) => {
                tracing::warn!("a batch worker failed: {}", chain(&error));
                tokio::time::sleep(LOOK).await;
            }
            Err(panic) => {
                tracing::error!("a batch worker panicked: {panic}");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// Executes one waiting batch; returns whether there was one.
async fn one(inference: Inference) -> Result<bool, BatchError> {
    let worker = Uuid::new_v4();
    let mut tx = inference.platform().await?;
    let claimed = batch_queue::claim(&mut tx, worker, STALE_SECONDS).await?;
    tx.commit_at(FailPoint::BatchClaim).await?;
    let Some(batch) = claimed else { return Ok(false) };
    let now = Now { standing: Standing { state: batch.state, is_late: false }, turn_is_over: false };
    let (told, hears) = watch::channel(now);
    // A separate task, because a task holds at most one connection at a time.
    let beating = AbortOnDropHandle::new(tokio::spawn(beat(inference.clone(), batch.clone(), worker, told)));
    let work = Box::pin(through(&inference, batch.clone(), worker, hears));
    let worked = tokio::select! {
        // A separate task would outlive a lost lease; a panic is caught here instead.
        worked = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(work)) => {
            worked.unwrap_or_else(|_| Err(BatchError::internal("the batch worker panicked")))
        }
        error = beating => Err(error.unwrap_or_else(BatchError::internal)),
    };
    if let Err(error) = &worked {
        broke_off(&inference, batch.batch_id, worker, error).await?;
    }
    worked.map(|()| true)
}

/// Releases a batch after a failure; ends it if that has happened too often and a retry would not help.
async fn broke_off(inference: &Inference, id: BatchId, worker: Uuid, error: &BatchError) -> Result<(), BatchError> {
    let mut tx = inference.platform().await?;
    let Some(failures) = batch_queue::broke_off(&mut tx, id, worker).await? else { return Ok(()) };
    if failures >= MOST_FAILURES && !error.is_passing() {
        tracing::error!(batch.id = %id, failures, "a batch has failed: {}", chain(error));
        let message = format!("The batch failed {failures} times in a row. {error}");
        batch::give_up(&mut tx, id, worker, &Defect::of_file("batch_failed", message)).await?;
    } else {
        batch_queue::give_back(&mut tx, id, worker).await?;
    }
    Ok(tx.commit().await?)
}

/// Sends heartbeats until the lease is lost.
async fn beat(inference: Inference, batch: Batch, worker: Uuid, told: watch::Sender<Now>) -> BatchError {
    loop {
        tokio::time::sleep(BEAT).await;
        match now(&inference, &batch, worker).await {
            Ok(now) => drop(told.send_replace(now)),
            Err(BatchError::Stale) => return BatchError::Stale,
            // The database may be unavailable briefly; if it is for longer, the lease expires by its clock.
            Err(error) => tracing::warn!(batch.id = %batch.batch_id, "no heartbeat: {}", chain(&error)),
        }
    }
}

async fn now(inference: &Inference, batch: &Batch, worker: Uuid) -> Result<Now, BatchError> {
    let mut tx = inference.platform().await?;
    let standing = batch_queue::beat(&mut tx, batch.batch_id, worker).await?;
    let turn_is_over = batch_queue::others_wait(&mut tx, batch.project_id, STALE_SECONDS).await?;
    tx.commit().await?;
    Ok(Now { standing, turn_is_over })
}

/// Executes a batch to its end, or to the end of its project's turn.
async fn through(
    inference: &Inference,
    batch: Batch,
    worker: Uuid,
    hears: watch::Receiver<Now>,
) -> Result<(), BatchError> {
    let id = batch.batch_id;
    let is_late = now(inference, &batch, worker).await?.standing.is_late;
    if batch.state == BatchState::Validating && !is_late {
        let checked = validation::check(inference, &batch).await?;
        let mut tx = inference.platform().await?;
        let stepped = match checked {
            Ok(total) => batch::accept(&mut tx, id, worker, total).await,
            Err(defects) => {
                tracing::info!(batch.id = %id, "the file of a batch is refused");
                match batch::refuse(&mut tx, id, worker, &defects).await {
                    Ok(()) => return Ok(tx.commit_at(FailPoint::BatchValidate).await?),
                    error => error,
                }
            }
        };
        match stepped {
            Ok(()) => tx.commit_at(FailPoint::BatchValidate).await?,
            Err(StoreError::Batch(_)) => {} // the batch was cancelled first
            Err(error) => return Err(error.into()),
        }
    }
    let standing = now(inference, &batch, worker).await?.standing;
    if standing.state == BatchState::InProgress && !standing.is_late {
        ask_all(inference, &batch, worker, hears.clone()).await?;
        if hears.borrow().turn_is_over {
            let mut tx = inference.platform().await?;
            batch_queue::give_back(&mut tx, id, worker).await?;
            return Ok(tx.commit().await?);
        }
    }
    end(inference, &batch, worker).await
}

/// Executes every request without an answer, several concurrently, until all are answered, the completion window has
/// passed, the user cancels, or it is another project's turn.
async fn ask_all(
    inference: &Inference,
    batch: &Batch,
    worker: Uuid,
    hears: watch::Receiver<Now>,
) -> Result<(), BatchError> {
    let stop = until(hears.clone(), |now| {
        now.turn_is_over || now.standing.is_late || now.standing.state == BatchState::Cancelling
    });
    let answers = unanswered(inference, batch)
        .await?
        .take_until(Box::pin(stop))
        .map_ok(move |(line, text)| {
            let (inference, batch) = (inference.clone(), batch.clone());
            async move {
                // A separate task: a panic becomes the answer to this request alone.
                let task = tokio::spawn(ask::ask(inference.clone(), batch.clone(), line, text.clone()));
                let asked = AbortOnDropHandle::new(task).await;
                Ok(asked.unwrap_or_else(|panic| Asked {
                    answer: ask::panicked(line, &text, &batch.endpoint, panic),
                    meter: Arc::new(Meter::new(inference.prices)),
                }))
            }
        })
        .try_buffer_unordered(ROWS);
    let kept = Box::pin(answers).try_for_each(move |asked| keep(inference, batch.batch_id, worker, asked));
    let turn = async move {
        until(hears, |now| now.turn_is_over).await;
        tokio::time::sleep(TURN_GRACE).await;
    };
    tokio::select! { kept = kept => kept, () = turn => Ok(()) }
}

/// Stores an answer, and charges for it if it is the first to its line.
async fn keep(inference: &Inference, id: BatchId, worker: Uuid, asked: Asked) -> Result<(), BatchError> {
    let mut tx = inference.platform().await?;
    let is_kept = batch::answer(&mut tx, id, worker, &asked.answer).await?;
    tx.commit_at(FailPoint::BatchAnswer).await?;
    if is_kept {
        inference.meter.absorb(&asked.meter);
    }
    Ok(())
}

/// Waits until `wanted` holds for the state that the heartbeat reports.
async fn until(mut hears: watch::Receiver<Now>, wanted: impl Fn(&Now) -> bool) {
    if hears.wait_for(wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns the lines that have no answer yet.
async fn unanswered(
    inference: &Inference,
    batch: &Batch,
) -> Result<impl stream::Stream<Item = Result<(u64, Vec<u8>), BatchError>> + use<>, BatchError> {
    let mut db = inference.platform().await?;
    let answered = batch::answered(&mut db, batch.batch_id).await?;
    drop(db);
    let answered: HashSet<u64> = answered.into_iter().map(|line| u64::from(line.unsigned_abs())).collect();
    let lines = Lines::open(inference, batch).await?;
    Ok(stream::try_unfold((lines, answered), |(mut lines, answered)| async move {
        while let Some(line) = lines.next().await? {
            match line {
                Line::Text(number, _) if answered.contains(&number) => {}
                Line::Text(number, text) => return Ok(Some(((number, text), (lines, answered)))),
                Line::TooLong(_) => break,
            }
        }
        Ok(None)
    }))
}

/// Ends a batch after its last request: writes the files and makes the final transition.
async fn end(inference: &Inference, batch: &Batch, worker: Uuid) -> Result<(), BatchError> {
    let id = batch.batch_id;
    let now = now(inference, batch, worker).await?.standing;
    let event = match now.state {
        BatchState::Cancelling => BatchEvent::Stopped,
        _ if now.is_late => {
            late_lines(inference, batch, worker).await?;
            BatchEvent::TimeUp
        }
        BatchState::InProgress => {
            let mut tx = inference.platform().await?;
            batch::step(&mut tx, id, Some(worker), BatchEvent::AnswersComplete).await?;
            tx.commit_at(FailPoint::BatchAnswered).await?;
            BatchEvent::FilesWritten
        }
        _ => BatchEvent::FilesWritten,
    };
    match output::finish(inference, batch, worker, event).await {
        // A cancel arrived in between: the files are written again, as those of a cancelled batch.
        Err(BatchError::Step(_)) => output::finish(inference, batch, worker, BatchEvent::Stopped).await,
        done => done,
    }
}

async fn late_lines(inference: &Inference, batch: &Batch, worker: Uuid) -> Result<(), BatchError> {
    let lines = unanswered(inference, batch).await?;
    let mut lines = Box::pin(lines);
    while let Some((line, text)) = lines.try_next().await? {
        let mut tx = inference.platform().await?;
        batch::answer(&mut tx, batch.batch_id, worker, &ask::too_late(line, &text, &batch.endpoint)).await?;
        tx.commit_at(FailPoint::BatchAnswer).await?;
    }
    Ok(())
}
