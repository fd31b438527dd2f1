//! The scheduler: everything asynchronous. Validation, dispatch, replicas, batches, repair, webhooks, cleanup.
//!
//! Queue messages wake it, rows decide, and the providers run processes. It serves no requests and communicates with
//! the API only through rows, apart from a health check.

/// The context that all tasks share.
mod app;
/// The execution of batches.
mod batches;
/// The configuration.
mod config;
/// Dispatch of waiting jobs.
mod dispatch;
/// Errors.
mod error;
/// Detection of lost runs and replicas.
pub(crate) mod liveness;
/// Runs and replicas whose processes wait at their provider.
mod pending;
mod providers;
/// The reconciler: repairs.
mod reconciler;
/// Deletes expired content and rows.
mod sweeper;
/// Handlers of queue messages.
mod tasks;
/// The limit on concurrent validations.
mod validations;
/// Sends events to users' endpoints.
mod webhooks;
/// A queue worker.
mod worker;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use attune_inference::context::Inference;
use attune_store::{
    config::DatabaseConfig,
    db::{self, Leadership},
    files::objects::Objects,
    queue::{DispatchJob, EnsureReplica, ValidateJob},
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing_subscriber::EnvFilter;

use crate::{
    app::App,
    batches::work,
    config::Config,
    liveness::ApiProbe,
    providers::registry::Providers,
    validations::{MAX_VALIDATIONS, Validations},
    webhooks::Sender,
};

/// The timeout for the database, its schema and the previous scheduler's lock.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time that running tasks have to finish after a stop is requested.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The size of the queue's own pool: each worker listens on one connection, and the rest work.
const QUEUE_CONNECTIONS: u32 = 12;

/// Attune's scheduler: validates and dispatches jobs, starts replicas, and repairs what breaks.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The configuration file (TOML); ATTUNE_…__… variables override it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Log filter: `info`, or by module: `info,attune_scheduler=debug`.
    #[arg(long, env = "ATTUNE_LOG", default_value = "info", value_name = "FILTER")]
    log: EnvFilter,
    /// Exit when standard input closes, and so when the parent process ends.
    #[arg(long)]
    exit_with_parent: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let _log = attune_process::log::start(args.log.clone());
    match Box::pin(start(&args)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: &Args) -> Result<()> {
    if args.exit_with_parent {
        attune_process::parent::exit_with_parent().context("watching standard input")?;
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    let config = Config::read(&args.config).with_context(|| format!("{}", args.config.display()))?;
    let stop = stop_on_signals()?;
    tokio::select! {
        done = run(config, stop.clone()) => done,
        // The stop arrived while it still waited for the database: there is nothing to clean up.
        () = stopped_before_start(&stop) => Ok(()),
    }
}

/// Returns some time after a stop. Never reached once [`run`] watches the token itself: it finishes earlier.
async fn stopped_before_start(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(3 * STOP_PATIENCE).await;
}

fn stop_on_signals() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        asked.cancel();
    });
    Ok(stop)
}

async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let pool = db::connect_as_platform(&config.database).context("opening the database")?;
    let queue_config = DatabaseConfig { max_connections: QUEUE_CONNECTIONS, ..config.database.clone() };
    let queue_pool = db::connect_as_platform(&queue_config).context("opening the database")?;
    db::wait_for_schema(&pool, PATIENCE).await?;
    let leadership = take_leadership(&config.database, PATIENCE).await?;

    let sender = Sender::new(pool.clone(), &config.webhooks).context("webhooks")?;
    let wake = Arc::new(tokio::sync::Notify::new());
    let providers = Providers::open(&config.providers, &config.api_url, &wake)?;
    let text_dir = config.text_dir;
    std::fs::create_dir_all(&text_dir).with_context(|| format!("{}", text_dir.display()))?;
    let objects = Objects::new(&config.object_store);
    let inference = Inference::new(pool.clone(), objects.clone(), config.serving.inference(), config.prices)?;
    let app = App {
        pool,
        objects,
        api: ApiProbe::new(&config.api_url).context("creating the API probe")?,
        providers,
        leases: config.leases,
        serving: config.serving,
        text_dir: text_dir.into(),
        placing: Arc::default(),
        validations: Validations::default(),
        wake,
    };

    let tasks = TaskTracker::new();
    for _ in 0..MAX_VALIDATIONS {
        tasks.spawn(worker::work::<ValidateJob>(app.clone(), queue_pool.clone(), stop.clone()));
    }
    tasks.spawn(worker::work::<DispatchJob>(app.clone(), queue_pool.clone(), stop.clone()));
    tasks.spawn(worker::work::<EnsureReplica>(app.clone(), queue_pool, stop.clone()));
    tasks.spawn(reconciler::reconcile(app.clone(), stop.clone()));
    tasks.spawn(sweeper::sweep(app.clone(), stop.clone()));
    for _ in 0..work::WORKERS {
        tasks.spawn(work::work(inference.clone(), stop.clone()));
    }
    let (meter, writing_pool) = (inference.meter.clone(), app.pool.clone());
    let writing = AbortOnDropHandle::new(tokio::spawn(async move { meter.write_on(writing_pool).await }));
    match sender {
        Some(sender) => drop(tasks.spawn(webhooks::deliver(sender, stop.clone()))),
        None => tracing::warn!("webhooks.secret_key is not set: no webhooks are sent"),
    }
    tasks.close();
    tracing::info!("ready");

    let kept = keep_leadership(&config.database, leadership, &stop).await;
    stop.cancel();
    if tokio::time::timeout(STOP_PATIENCE, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not finish; they are retried at the next start");
    }
    writing.abort();
    let written = inference.meter.write(&app.pool).await.context("the last usage could not be written");
    kept?;
    reconciler::hand_back(&app).await.context("requeueing the runs")?;
    written
}

/// Waits until no other scheduler holds this database's lock.
async fn take_leadership(config: &DatabaseConfig, patience: Duration) -> Result<Leadership> {
    let since = std::time::Instant::now();
    loop {
        match Leadership::try_take(config).await.context("checking for another scheduler")? {
            Some(leadership) => return Ok(leadership),
            None if since.elapsed() > patience => bail!("another scheduler is running on this database"),
            None => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Returns when a stop is requested, or with an error when another scheduler has taken over: the lock is released with
/// its connection, so a restart of the database makes it available to all.
///
/// Waits without end for an unavailable database. Exiting would end every trainer and every replica too, and no other
/// scheduler can take over meanwhile.
async fn keep_leadership(config: &DatabaseConfig, mut held: Leadership, stop: &CancellationToken) -> Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
        if held.is_held().await {
            continue;
        }
        tracing::warn!("the database connection was lost; checking again for another scheduler");
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            again = reclaim(config) => held = again.context("another scheduler has taken over")?,
        }
    }
}

/// Retries until the database answers; `None`: another scheduler holds the lock.
async fn reclaim(config: &DatabaseConfig) -> Option<Leadership> {
    loop {
        match Leadership::try_take(config).await {
            Ok(answer) => return answer,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

#[cfg(test)]
mod tests;
