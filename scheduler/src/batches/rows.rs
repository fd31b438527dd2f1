//! The execution of a batch's requests: model by model, several at the same time, until all are answered or the batch
//! has to stop.

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use attune_inference::{availability, context::Inference, error::InferenceError, metering::Meter};
use attune_process::failpoint::FailPoint;
use attune_store::{
    batches::{batch::Batch, batch_answer},
    replica::ServedBase,
};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::batches::{
    ask::{self, Asked, Outcome},
    capacity::BatchAtPool,
    error::BatchError,
    held::{Held, Now},
    lines,
    plan::{self, Group, Row},
};

/// The maximum number of concurrent requests of a batch whose model has no pool: each is answered with an error.
const WITHOUT_POOL: usize = 4;

/// The interval between two looks at the capacity of the pool.
const REFRESH: Duration = Duration::from_secs(2);

/// The time that running requests have to finish once it is another project's turn; unfinished ones are executed again
/// later.
const TURN_GRACE: Duration = Duration::from_secs(10);

/// The end of the requests of one model.
enum GroupEnd {
    /// All are answered.
    Answered,
    /// Some remain, because the batch has to stop.
    Stopped,
    /// Some remain, because the model has no replica.
    Unavailable(InferenceError),
    /// All remain, because another model of the same pool has no replica.
    Skipped,
}

/// Executes every request without an answer, until all are answered, the completion window has passed, the user
/// cancels, or it is another project's turn. Returns whether all are answered.
///
/// # Errors
/// [`BatchError::Unavailable`]: requests remain whose model has no replica; all others are answered.
/// [`BatchError::Stale`], [`BatchError::InputGone`], [`BatchError::Failed`].
pub(crate) async fn execute(held: &Held, hears: &watch::Receiver<Now>) -> Result<bool, BatchError> {
    let inference = &held.batches.inference;
    let groups = plan::unanswered(inference, &held.batch).await?;
    let key: Arc<str> = lines::input_key(inference, &held.batch).await?.into();
    let (mut unavailable, mut without_replica) = (None, HashSet::new());
    for group in groups {
        match execute_group(held, hears, group, &key, &mut without_replica).await? {
            GroupEnd::Answered | GroupEnd::Skipped => {}
            GroupEnd::Stopped => return Ok(false),
            GroupEnd::Unavailable(error) => {
                tracing::info!(batch.id = %held.batch.batch_id, "requests of a batch remain: {error}");
                // One whose replica failed counts as an attempt, whatever the others wait for.
                if !matches!(unavailable, Some(InferenceError::ReplicaUnavailable { .. })) {
                    unavailable = Some(error);
                }
            }
        }
    }
    unavailable.map_or(Ok(true), |error| Err(BatchError::Unavailable(error)))
}

/// Executes the requests of one model, unless its pool is known to be without replicas.
async fn execute_group(
    held: &Held,
    hears: &watch::Receiver<Now>,
    group: Group,
    key: &Arc<str>,
    without_replica: &mut HashSet<ServedBase>,
) -> Result<GroupEnd, BatchError> {
    let mut stop: Pin<Box<_>> = Box::pin(stopped(hears.clone()));
    let model = match &group.model {
        Some(name) => availability::find(&held.batches.inference, held.batch.project_id, name).await?,
        None => None,
    };
    if let Some(model) = &model {
        if without_replica.contains(&model.base) {
            return Ok(GroupEnd::Skipped);
        }
        let available = tokio::select! {
            available = availability::wait(&held.batches.inference, model) => available,
            () = &mut stop => return Ok(GroupEnd::Stopped),
        };
        if let Err(error) = available {
            without_replica.insert(model.base);
            return Ok(GroupEnd::Unavailable(error));
        }
    }
    let at_pool = model.map(|model| held.batches.at_pools.enter(model.base));
    let mut limit = limit(held, at_pool.as_ref()).await?;
    let mut refresh = tokio::time::interval(REFRESH);
    let (mut rest, mut running, mut unavailable) = (group.rows.into_iter(), FuturesUnordered::new(), None);
    loop {
        while running.len() < limit && unavailable.is_none() && !hears.borrow().stops() {
            let Some(row) = rest.next() else { break };
            running.push(execute_row(held.batches.inference.clone(), held.batch.clone(), key.clone(), row));
        }
        if running.is_empty() {
            return Ok(match unavailable {
                Some(error) => GroupEnd::Unavailable(error),
                None if rest.as_slice().is_empty() => GroupEnd::Answered,
                None => GroupEnd::Stopped,
            });
        }
        tokio::select! {
            Some(done) = running.next() => match done? {
                Outcome::Answered(asked) => keep(held, asked).await?,
                Outcome::Unavailable(error) => unavailable = Some(error),
            },
            () = &mut stop => return Ok(GroupEnd::Stopped),
            _ = refresh.tick() => limit = self::limit(held, at_pool.as_ref()).await?,
        }
    }
}

async fn limit(held: &Held, at_pool: Option<&BatchAtPool>) -> Result<usize, BatchError> {
    match at_pool {
        Some(at_pool) => at_pool.share(&held.batches.inference, held.batches.target_concurrency).await,
        None => Ok(WITHOUT_POOL),
    }
}

async fn execute_row(inference: Inference, batch: Batch, key: Arc<str>, row: Row) -> Result<Outcome, BatchError> {
    let text = lines::read_line(&inference, &key, row.span).await?;
    // A separate task: a panic becomes the answer to this request alone.
    let task = tokio::spawn(ask::ask(inference.clone(), batch.clone(), row.line, text.clone()));
    Ok(AbortOnDropHandle::new(task).await.unwrap_or_else(|panic| {
        Outcome::Answered(Asked {
            answer: ask::panicked(row.line, &text, batch.endpoint, panic),
            meter: Arc::new(Meter::new(inference.prices)),
        })
    }))
}

/// Stores an answer, and charges for it if it is the first to its line.
async fn keep(held: &Held, asked: Asked) -> Result<(), BatchError> {
    let inference = &held.batches.inference;
    let mut tx = inference.platform().await?;
    let is_kept = batch_answer::answer(&mut tx, held.batch.batch_id, held.worker, &asked.answer).await?;
    tx.commit_at(FailPoint::BatchAnswer).await?;
    if is_kept {
        inference.meter.absorb(&asked.meter);
    }
    Ok(())
}

/// Waits until running requests must not continue: the batch was cancelled or its window has passed, or another
/// project waits for longer than [`TURN_GRACE`].
async fn stopped(hears: watch::Receiver<Now>) {
    let turn = async {
        until(hears.clone(), |now| now.turn_is_over).await;
        sleep(TURN_GRACE).await;
    };
    tokio::select! {
        () = until(hears.clone(), |now| now.ends()) => {}
        () = turn => {}
    }
}

/// Waits until `wanted` holds for the state that the heartbeat reports.
async fn until(mut hears: watch::Receiver<Now>, wanted: impl Fn(&Now) -> bool) {
    if hears.wait_for(wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}
