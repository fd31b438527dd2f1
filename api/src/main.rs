//! attune-api: the HTTP API of Attune, for users' programs, trainers and serving processes. Asynchronous work is
//! written to the queue, for the scheduler. The table of contents is `router.rs`.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use attune_api::{
    adapter_import::take,
    app::App,
    auth::{credentials::Authenticator, issuers::Issuers},
    base_import,
    config::{Config, MetricsConfig},
    files::{
        parser,
        text_places::{TEXT_AT_ONCE, TextPlaces},
    },
    middleware::rate_limiter::RateLimiter,
    places::Places,
    router, routes,
    webhooks::Webhooks,
};
use attune_inbound::Publisher;
use attune_inference::context::Inference;
use attune_process::{log, parent};
use attune_store::{
    db,
    files::objects::Objects,
    ids,
    tenancy::{api_key, tenant},
};
use clap::Parser;
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgPool;
use tokio::{net::TcpListener, signal::unix, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The time that requests have to finish after a shutdown signal.
const GRACE: Duration = Duration::from_secs(10);

/// The HTTP API of Attune.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
    /// The format of the log: `text`, or `json`, one object a line.
    #[arg(long, env = "ATTUNE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: log::Format,
    /// Exit when standard input closes.
    #[arg(long)]
    exit_with_parent: bool,
}

fn main() -> ExitCode {
    // The API starts itself like this to parse an untrusted file. No other code of the API may run in that process.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(parser::ARGUMENT) {
        return attune_dataset::child::run(&arguments.next().unwrap_or_default());
    }
    let args = Args::parse();
    // sqlx logs every notice of a migration that had nothing to do.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx::postgres::notice=warn"));
    let _log = log::start("attune-api", filter, args.log_format);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: Args) -> anyhow::Result<()> {
    if args.exit_with_parent {
        parent::exit_with_parent().context("watching standard input")?;
    }
    // The only error is that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::read(&args.config).with_context(|| format!("in {}", args.config.display()))?;
    serve(config).await
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let bounds = config.limits.connection_bounds().within(attune_inbound::raise_descriptor_limit());
    db::migrate_as_owner(&config.database).await.context("the database cannot be prepared")?;
    let pool = db::connect(&config.database).await.context("the database cannot be reached")?;
    let objects = Objects::new(&config.object_store);
    objects.ensure_bucket().await?;
    objects.try_out().await.context("the object store cannot be used")?;
    if let Some(key) = &config.bootstrap_key {
        let_in(&pool, key).await.context("the bootstrap key could not be stored")?;
    }
    let app = App {
        db: pool.clone(),
        inference: Inference::new(pool.clone(), objects.clone(), config.serving, config.prices)?,
        objects,
        limits: Arc::new(config.limits),
        base_imports: Arc::new(Places::new(base_import::AT_ONCE, base_import::AT_ONCE_OF_PROJECT)),
        adapter_imports: Arc::new(Places::new(take::AT_ONCE, take::AT_ONCE_OF_PROJECT)),
        text: Arc::new(TextPlaces::new(TEXT_AT_ONCE)),
        streams: Arc::new(Semaphore::new(routes::job_events::MOST_STREAMS)),
        stopping: CancellationToken::new(),
        webhooks: Arc::new(Webhooks::new(&config.webhooks).context("webhooks.secret_key")?),
        policies: Arc::default(),
        authenticator: Authenticator::new(
            pool,
            Issuers::new(config.oidc).map_err(anyhow::Error::msg)?,
            config.bootstrap_key.as_ref().map(|key| ids::hash(key.expose_secret()).into()),
        ),
        rate_limiter: Arc::new(RateLimiter::new(config.rate_limits)),
        parsers: Arc::new(Places::of_processors()),
        reports: Arc::default(),
    };
    publish_metrics(config.metrics, &app.db).await?;
    let (inference, stopping) = (app.inference.clone(), app.stopping.clone());
    let writing = tokio::spawn(inference.clone().write_on());
    let watching = tokio::spawn(inference.clone().watch_pools());
    let router = router::router(app, &config.public_url, &config.cors).context("in [cors]")?;
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(address = %listener.local_addr()?, "listening on {}", listener.local_addr()?);
    let stop = stopping.clone();
    let server = attune_inbound::serve(listener, router, bounds, async move {
        stop_asked().await;
        stop.cancel();
    });
    tokio::select! {
        () = server => {}
        () = async { stopping.cancelled().await; tokio::time::sleep(GRACE).await } => {
            tracing::warn!("aborting requests that did not finish within {} s of the shutdown signal", GRACE.as_secs());
        }
    }
    writing.abort();
    watching.abort();
    inference.write().await.context("the last usage could not be written")
}

/// Publishes metrics where that is configured.
async fn publish_metrics(config: MetricsConfig, pool: &PgPool) -> anyhow::Result<()> {
    let Some(address) = config.listen else { return Ok(()) };
    let publisher = Publisher { program: "attune-api", version: env!("CARGO_PKG_VERSION") };
    let pool = pool.clone();
    let published = attune_inbound::publish_metrics(publisher, address, move || db::publish_pool(&pool)).await;
    published.map(drop).with_context(|| format!("metrics.listen: cannot listen on {address}"))
}

/// Creates the bootstrap key and its project; both may exist from an earlier start.
async fn let_in(pool: &PgPool, key: &SecretString) -> anyhow::Result<()> {
    let mut tx = db::platform(pool).await?;
    let project = tenant::ensure(&mut tx, "default", "default").await?;
    api_key::ensure(&mut tx, project.project_id, "bootstrap", key.expose_secret()).await?;
    tx.commit().await?;
    Ok(())
}

async fn stop_asked() {
    let Ok(mut terminated) = unix::signal(unix::SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
}
