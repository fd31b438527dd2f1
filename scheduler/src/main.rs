//! The scheduler: everything asynchronous. Validation, dispatch, replicas, batches, repair, webhooks, cleanup.
//!
//! Queue messages wake it, rows decide, and the providers run processes. It serves no requests but those for its
//! metrics, and communicates with the API only through rows, apart from a health check.

/// Metrics of adapter versions.
mod adapter_gauges;
/// The context that all tasks share.
mod app;
/// The number of replicas of each pool.
mod autoscaler;
/// The execution of batches.
mod batches;
/// The catalogue of instance types.
mod catalogue;
/// The configuration.
mod config;
/// Dispatch of waiting jobs.
mod dispatch;
/// Errors.
mod error;
/// Metrics.
mod gauges;
/// The leadership of this scheduler.
mod leader;
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

use anyhow::{Context, Result};
use attune_inference::context::Inference;
use attune_process::{log, parent};
use attune_store::{
    batches::batch_queue::Claims,
    config::DatabaseConfig,
    db,
    files::objects::Objects,
    queue::{DispatchJob, EnsureExport, EnsureReplica, ValidateJob},
};
use chrono::Utc;
use clap::Parser;
use sqlx::PgPool;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing_subscriber::EnvFilter;

use crate::{
    app::App,
    batches::{context::Batches, work},
    catalogue::SharedCatalogue,
    config::{Config, ProviderConfig},
    leader::Leader,
    liveness::ApiProbe,
    providers::registry::Providers,
    validations::{MAX_VALIDATIONS, Validations},
    webhooks::Sender,
};

/// The timeout for the database and its schema.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time that running tasks have to finish after a stop is requested.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The size of the queue's own pool: each worker listens on one connection, and the rest work.
const QUEUE_CONNECTIONS: u32 = 14;

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
    /// The format of the log: `text`, or `json`, one object a line.
    #[arg(long, env = "ATTUNE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: log::Format,
    /// Exit when standard input closes, and so when the parent process ends.
    #[arg(long)]
    exit_with_parent: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let _log = log::start("attune-scheduler", args.log.clone(), args.log_format);
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
        parent::exit_with_parent().context("watching standard input")?;
    }
    // The only error is that a provider is already installed, for the export of traces.
    let _ = rustls::crypto::ring::default_provider().install_default();
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

/// Reads the catalogue, and warns of the offers whose price is unknown now: no run starts there until it is known.
async fn read_catalogue(providers: &[ProviderConfig], pool: &PgPool) -> Result<SharedCatalogue> {
    let catalogue = SharedCatalogue::default();
    catalogue.refresh(&mut *db::platform(pool).await?).await.context("reading the catalogue")?;
    for provider in providers {
        let ProviderConfig::Kubernetes(cluster) = provider else { continue };
        for warning in cluster.unpriced(&catalogue.get(), Utc::now().timestamp()) {
            tracing::warn!("{warning}");
        }
    }
    Ok(catalogue)
}

async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let pool = db::connect_as_platform(&config.database).context("opening the database")?;
    let queue_config = DatabaseConfig { max_connections: QUEUE_CONNECTIONS, ..config.database.clone() };
    let queue_pool = db::connect_as_platform(&queue_config).context("opening the database")?;
    gauges::publish(config.metrics, &pool).await?;
    db::wait_for_schema(&pool, PATIENCE).await?;
    let catalogue = read_catalogue(&config.providers, &pool).await?;
    let Some(leadership) = leader::take(&config.database, PATIENCE, &stop).await? else { return Ok(()) };

    let sender = Sender::new(pool.clone(), &config.webhooks).context("webhooks")?;
    let wake = Arc::new(tokio::sync::Notify::new());
    let providers = Providers::open(&config.providers, &config.api_url, catalogue, &wake).await?;
    let text_dir = config.text_dir;
    std::fs::create_dir_all(&text_dir).with_context(|| format!("{}", text_dir.display()))?;
    let objects = Objects::new(&config.object_store);
    let inference = Inference::new(pool.clone(), objects.clone(), config.serving.inference(), config.prices)?;
    let app = App {
        pool,
        leader: Arc::new(Leader::new(leadership.term())),
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
    tasks.spawn(worker::work::<EnsureExport>(app.clone(), queue_pool.clone(), stop.clone()));
    tasks.spawn(worker::work::<EnsureReplica>(app.clone(), queue_pool, stop.clone()));
    tasks.spawn(reconciler::repair::reconcile(app.clone(), stop.clone()));
    tasks.spawn(autoscaler::pass::run(app.clone(), stop.clone()));
    tasks.spawn(gauges::read(app.clone(), config.metrics, stop.clone()));
    tasks.spawn(sweeper::sweep(app.clone(), stop.clone()));
    let batches = Batches::new(inference.clone(), app.leader.clone(), app.serving.target_concurrency);
    for _ in 0..work::WORKERS {
        tasks.spawn(work::work(batches.clone(), Claims::All, stop.clone()));
    }
    tasks.spawn(work::work(batches, Claims::Ending, stop.clone()));
    let writing = AbortOnDropHandle::new(tokio::spawn(inference.clone().write_on()));
    let watching = AbortOnDropHandle::new(tokio::spawn(inference.clone().watch_pools()));
    match sender {
        Some(sender) => drop(tasks.spawn(webhooks::deliver(sender, stop.clone()))),
        None => tracing::warn!("webhooks.secret_key is not set: no webhooks are sent"),
    }
    tasks.close();
    tracing::info!("ready");

    let kept = leader::keep(&config.database, leadership, (&app.leader, &app.pool), &stop).await;
    stop.cancel();
    if tokio::time::timeout(STOP_PATIENCE, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not finish; they are retried at the next start");
    }
    writing.abort();
    watching.abort();
    let written = inference.write().await.context("the last usage could not be written");
    let _leadership = kept?; // until the runs are requeued
    reconciler::repair::hand_back(&app).await.context("requeueing the runs")?;
    written
}

#[cfg(test)]
mod tests;
