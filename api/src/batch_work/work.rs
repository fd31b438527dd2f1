//! A batch from its claim to its end. The worker's heart beats in the row by the database's clock; a worker that is taken
//! for dead finds its lease gone at the next write and leaves the batch alone.

use std::{collections::HashSet, time::Duration};

use attune_domain::{
    batch::{BatchEvent, BatchState},
    id::BatchId,
};
use attune_store::{
    batch::{self, Batch, Standing},
    error::StoreError,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    app::App,
    batch_work::{
        ask,
        lines::{Line, Lines},
        output, validation,
    },
    error::ApiError,
};

/// Batches that one process works on at once.
const BATCHES: usize = 4;

/// Requests of one batch that are asked at once.
const ROWS: usize = 4;

/// Between two looks for a batch that nobody works on.
const LOOK: Duration = Duration::from_secs(1);

/// Between two beats, and the silence after which a worker is taken for dead.
const BEAT: Duration = Duration::from_secs(3);
const STALE_SECONDS: f64 = 12.0;

/// Works on batches until the process ends.
pub fn start(app: &App) {
    for _ in 0..BATCHES {
        let app = app.clone();
        tokio::spawn(async move {
            loop {
                // A task of its own, so that a panic ends only that.
                match tokio::spawn(one(app.clone())).await {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => tokio::time::sleep(LOOK).await,
                    Ok(Err(error)) => {
                        tracing::warn!("work on a batch broke off: {}", crate::error::chain(&error));
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(panic) => {
                        tracing::error!("work on a batch broke off: {panic}");
                        tokio::time::sleep(LOOK).await;
                    }
                }
            }
        });
    }
}

/// Works on one batch, if one waits; says whether one did.
async fn one(app: App) -> Result<bool, ApiError> {
    let worker = Uuid::new_v4();
    let mut tx = app.platform().await?;
    let claimed = batch::claim(&mut tx, worker, STALE_SECONDS).await?;
    tx.commit().await?;
    let Some(batch) = claimed else { return Ok(false) };
    let id = batch.batch_id;
    let standing = Standing { state: batch.state, is_late: false };
    let (told, hears) = watch::channel(standing);
    let worked = tokio::select! {
        worked = Box::pin(through(&app, batch, worker, hears)) => worked,
        error = beat(&app, id, worker, &told) => Err(error),
    };
    if worked.is_err() {
        // Whoever comes next need not wait until this one is taken for dead.
        let mut tx = app.platform().await?;
        batch::give_back(&mut tx, id, worker).await?;
        tx.commit().await?;
    }
    worked.map(|()| true)
}

/// Ends when the lease is lost.
async fn beat(app: &App, id: BatchId, worker: Uuid, told: &watch::Sender<Standing>) -> ApiError {
    loop {
        tokio::time::sleep(BEAT).await;
        match look(app, id, worker).await {
            Ok(standing) => drop(told.send_replace(standing)),
            Err(ApiError::Stale) => return ApiError::Stale,
            // The database may be away for a moment; if it is for longer, the lease is lost by its clock.
            Err(error) => tracing::warn!(batch.id = %id, "no beat: {}", crate::error::chain(&error)),
        }
    }
}

async fn look(app: &App, id: BatchId, worker: Uuid) -> Result<Standing, ApiError> {
    let mut tx = app.platform().await?;
    let standing = batch::beat(&mut tx, id, worker).await?;
    tx.commit().await?;
    Ok(standing)
}

/// Whatever of its life is still before it.
async fn through(app: &App, batch: Batch, worker: Uuid, hears: watch::Receiver<Standing>) -> Result<(), ApiError> {
    let id = batch.batch_id;
    if batch.state == BatchState::Validating {
        let checked = validation::check(app, &batch).await?;
        let mut tx = app.platform().await?;
        let stepped = match checked {
            Ok(total) => batch::accept(&mut tx, id, worker, total).await,
            Err(defects) => {
                tracing::info!(batch.id = %id, "the file of a batch is refused");
                match batch::refuse(&mut tx, id, worker, &defects).await {
                    Ok(()) => return Ok(tx.commit().await?),
                    error => error,
                }
            }
        };
        match stepped {
            Ok(()) => tx.commit().await?,
            Err(StoreError::Batch(_)) => {} // a cancel came first
            Err(error) => return Err(error.into()),
        }
    }
    let now = look(app, id, worker).await?;
    if now.state == BatchState::InProgress && !now.is_late {
        ask_all(app, &batch, worker, hears).await?;
    }
    end(app, &batch, worker).await
}

/// Asks every line that has no answer, some at once, until all have one, the time is up, or the user wants it to stop.
async fn ask_all(app: &App, batch: &Batch, worker: Uuid, mut hears: watch::Receiver<Standing>) -> Result<(), ApiError> {
    let stop = async move {
        let is_over = |now: &Standing| now.is_late || now.state == BatchState::Cancelling;
        if hears.wait_for(is_over).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let answers = unanswered(app, batch)
        .await?
        .take_until(Box::pin(stop))
        .map_ok(move |(line, text)| {
            let (app, batch) = (app.clone(), batch.clone());
            async move {
                // A task of its own: a panic is the answer to this request alone.
                let asked = tokio::spawn(ask::ask(app, batch.clone(), line, text.clone())).await;
                Ok(asked.unwrap_or_else(|panic| ask::broke_off(line, &text, &batch.endpoint, panic)))
            }
        })
        .try_buffer_unordered(ROWS);
    Box::pin(answers)
        .try_for_each(move |answer| async move {
            let mut tx = app.platform().await?;
            batch::answer(&mut tx, batch.batch_id, worker, &answer).await?;
            Ok(tx.commit().await?)
        })
        .await
}

/// The lines that have no answer yet.
async fn unanswered(
    app: &App,
    batch: &Batch,
) -> Result<impl stream::Stream<Item = Result<(u64, Vec<u8>), ApiError>> + use<>, ApiError> {
    let mut db = app.platform().await?;
    let answered = batch::answered(&mut db, batch.batch_id).await?;
    drop(db);
    let answered: HashSet<u64> = answered.into_iter().map(|line| u64::from(line.unsigned_abs())).collect();
    let lines = Lines::open(app, batch).await?;
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

/// Nothing more is asked: writes the files and takes the last step.
async fn end(app: &App, batch: &Batch, worker: Uuid) -> Result<(), ApiError> {
    let id = batch.batch_id;
    let now = look(app, id, worker).await?;
    let event = match now.state {
        BatchState::Cancelling => BatchEvent::Stopped,
        _ if now.is_late => {
            late_lines(app, batch, worker).await?;
            BatchEvent::TimeUp
        }
        BatchState::InProgress => {
            let mut tx = app.platform().await?;
            batch::step(&mut tx, id, Some(worker), BatchEvent::AnswersComplete).await?;
            tx.commit().await?;
            BatchEvent::FilesWritten
        }
        _ => BatchEvent::FilesWritten,
    };
    match output::finish(app, batch, worker, event).await {
        // A cancel came in the middle: the files are written again, as those of a batch that was stopped.
        Err(ApiError::Conflict(_)) => output::finish(app, batch, worker, BatchEvent::Stopped).await,
        done => done,
    }
}

async fn late_lines(app: &App, batch: &Batch, worker: Uuid) -> Result<(), ApiError> {
    let lines = unanswered(app, batch).await?;
    let mut lines = Box::pin(lines);
    while let Some((line, text)) = lines.try_next().await? {
        let mut tx = app.platform().await?;
        batch::answer(&mut tx, batch.batch_id, worker, &ask::too_late(line, &text, &batch.endpoint)).await?;
        tx.commit().await?;
    }
    Ok(())
}
