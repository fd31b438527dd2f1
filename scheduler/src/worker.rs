//! A queue worker: handles messages one at a time.
//!
//! apalis 1.0 ends a worker at any database error, re-adopts a dead worker's messages indefinitely under the same name,
//! and misses delayed messages when it only listens. Hence: a new name at each start, one message at a time, listening
//! and polling, and a loop that restarts the worker.

use std::{
    io,
    time::{Duration, Instant},
};

use apalis::prelude::*;
use apalis_postgres::{Config, PostgresStorage};
use attune_process::{
    error_chain::chain,
    metrics::{QUEUE_MESSAGE_SECONDS, QUEUE_MESSAGES},
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{app::App, error::SchedulerError, tasks::Handle};

/// The polling interval without a notification.
const POLL: Duration = Duration::from_secs(1);

/// The delay before a worker that ended is restarted.
const PAUSE: Duration = Duration::from_millis(500);

/// Handles `T`'s queue until `stop`; the current message is finished. `pool` is the queue's own: each worker keeps one
/// connection for listening.
pub(crate) async fn work<T: Handle>(app: App, pool: PgPool, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let config = Config::default()
            .queue(T::QUEUE)
            .batch_size(1)
            .heartbeat_interval(Duration::from_secs(5))
            .missed_heartbeats(6);
        let backend = PostgresStorage::<T>::new(&pool).with_config(config).with_pubsub().poll_with_interval(POLL);
        let name = format!("{}-{}", T::QUEUE, uuid::Uuid::new_v4().simple());
        let until = stop.clone();
        let ended = WorkerBuilder::new(name)
            .backend(backend)
            .data(app.clone())
            .concurrency(1)
            .build(handle::<T>)
            .run_until(async move {
                until.cancelled().await;
                Ok::<(), io::Error>(())
            })
            .await;
        if let Err(error) = ended {
            tracing::warn!(queue = T::QUEUE, error = chain(&error), "a worker ended; it is restarted");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Always succeeds: errors are logged here, and the reconciler sends the message again. The handler has its own task,
/// so that a panic ends only that task, and a long handler does not delay the worker's heartbeat.
async fn handle<T: Handle>(task: T, app: Data<App>) -> Result<(), BoxDynError> {
    let began = Instant::now();
    let work = tokio::spawn(task.handle((*app).clone()));
    let outcome = match work.await.map_err(SchedulerError::from).flatten() {
        Ok(()) => "ok",
        Err(error) => {
            tracing::warn!(queue = T::QUEUE, error = chain(&error), "a task failed; it is retried");
            "failed"
        }
    };
    QUEUE_MESSAGES.inc([T::QUEUE, outcome]);
    QUEUE_MESSAGE_SECONDS.observe([T::QUEUE], began.elapsed().as_secs_f64());
    Ok(())
}
