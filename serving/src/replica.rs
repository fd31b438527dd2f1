//! A replica's lifecycle: fetch the spec, load the base, start the engine, serve, report, shut down.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use attune_domain::serve::{CONTRACT_VERSION, MOST_QUEUE_SECONDS, ServeSpec};
use attune_inbound::{Bounds, Publisher};
use attune_node::{Cache, NodeError, Platform, http_client};
use attune_process::metrics::ADAPTER_DISK_BYTES_MAX;
use backon::Retryable;
use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    adapters::Adapters,
    answering::grammar::Grammars,
    app::App,
    config::Config,
    decoding::engine::{self, Draft, Limits, Models},
    http::router,
    models::Loaded,
    reports::{self, Status, retries},
    residency::{ResidentBudget, loader::Source},
};

/// The time that running requests have to finish at shutdown.
const GRACE: Duration = Duration::from_secs(10);
/// The maximum time that a live request waits for its first slot, and before it for memory for its adapter.
const MOST_WAIT: Duration = Duration::from_secs(MOST_QUEUE_SECONDS);

/// Serves until the platform or a signal requests a stop.
///
/// # Errors
/// The platform cannot be reached, or the replica cannot serve. The reason has been reported to the platform if
/// possible.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let platform = Platform::new(http_client()?, &config.api_url, config.token.clone());
    let spec = first_spec(&platform).await.context("fetching the replica's spec failed")?;
    if spec.version != CONTRACT_VERSION {
        bail!(
            "this replica implements version {CONTRACT_VERSION} of the serving contract, and the platform version {}",
            spec.version
        );
    }
    tracing::info!(
        replica_id = %spec.replica_id,
        "replica {} of base {} in {}",
        spec.replica_id,
        spec.base_digest,
        spec.quantization.in_words()
    );
    let status = Arc::new(Status::default());
    publish_metrics(&config, &status).await;
    let end = CancellationToken::new();
    let every = Duration::from_secs(spec.heartbeat_seconds.max(1));
    let reports = tokio::spawn(reports::run(platform.clone(), status.clone(), every, end.clone()));
    let outcome = tokio::select! {
        outcome = open_and_serve(&platform, &config, spec, &status, &end) => outcome,
        // Stopped or interrupted before the base was loaded: no request is in progress.
        () = stopped_while_closed(&status, &end) => Ok(()),
    };
    end.cancel();
    let _ = reports.await;
    if let Err(why) = &outcome {
        reports::last(&platform, format!("{why:#}")).await;
    }
    outcome
}

/// Publishes metrics where that is configured. Several replicas may share a machine, and with it the configuration: one
/// whose address is taken serves without metrics.
async fn publish_metrics(config: &Config, status: &Arc<Status<App>>) {
    let Some(address) = config.metrics_listen else { return };
    let publisher = Publisher { program: "attune-serving", version: env!("CARGO_PKG_VERSION") };
    let status = status.clone();
    let sample = move || status.open.get().into_iter().for_each(|(_, app)| app.adapters.publish());
    if let Err(why) = attune_inbound::publish_metrics(publisher, address, sample).await {
        tracing::warn!(%address, %why, "metrics cannot be published");
    }
}

pub(crate) async fn first_spec(platform: &Platform) -> Result<ServeSpec, NodeError> {
    let ask = || async { platform.get::<ServeSpec>("/internal/replica/spec").await };
    ask.retry(retries()).when(NodeError::is_passing).await
}

async fn stopped_while_closed(status: &Status<App>, end: &CancellationToken) {
    end.cancelled().await;
    if status.open.get().is_some() {
        std::future::pending::<()>().await; // the running server handles its own shutdown
    }
}

async fn open_and_serve(
    platform: &Platform,
    config: &Config,
    spec: ServeSpec,
    status: &Status<App>,
    end: &CancellationToken,
) -> anyhow::Result<()> {
    let cache = Cache::open(&config.cache_dir)?.with_adapter_budget(spec.disk_cache);
    ADAPTER_DISK_BYTES_MAX.set([], spec.disk_cache.0 as f64);
    let loaded = Loaded::fetch(platform, &cache, &spec).await?;
    let budget = loaded.budget(&spec);
    let Loaded { base, draft, text } = loaded;
    let source = Source {
        client: platform.client().clone(),
        cache,
        architecture: base.architecture().clone(),
        text: Arc::new(text),
        grammars: Arc::new(Grammars::new(usize::try_from(base.architecture().vocab_size).unwrap_or(0))),
    };
    let limits = Limits {
        max_batch: usize::from(config.max_batch),
        kv_memory: budget.kv,
        max_wait: MOST_WAIT,
        speculation: spec.speculation,
        kv_cache_dtype: spec.kv_cache_dtype,
    };
    let draft = draft.map(|base| Draft { base, kv_memory: budget.draft_kv });
    let (engine, ended) = engine::start(Models { base, draft }, limits)?;
    let app = Arc::new(App {
        token: config.token.clone(),
        adapters: Adapters::new(source, ResidentBudget::new(budget.adapters), MOST_WAIT),
        engine,
        admission: Arc::default(),
        requests: TaskTracker::new(),
        active: 0.into(),
    });

    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening on {address}");
    let _ = status.open.set((address, app.clone()));
    status.changed.notify_one();
    answer_until(listener, &app, end, ended).await
}

async fn answer_until(
    listener: TcpListener,
    app: &Arc<App>,
    end: &CancellationToken,
    engine_ended: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let bounds = Bounds::default().within(attune_inbound::raise_descriptor_limit());
    let server = attune_inbound::serve(listener, router(app.clone()), bounds, end.clone().cancelled_owned());
    let server = tokio::spawn(server);
    tokio::select! {
        () = end.cancelled() => {}
        () = terminated() => end.cancel(),
        _ = engine_ended => bail!("the engine's thread has ended; see the replica's log"),
    }
    app.requests.close();
    tracing::info!(requests = app.active.load(Ordering::Relaxed), "shutting down");
    if timeout(GRACE, app.requests.wait()).await.is_err() {
        tracing::warn!("some requests did not finish in {} s", GRACE.as_secs());
    }
    // The connections only have their last lines to send.
    let _ = timeout(Duration::from_secs(1), server).await;
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn terminated() {
    let interrupted = tokio::signal::ctrl_c();
    let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
        let _ = interrupted.await;
        return;
    };
    tokio::select! {
        _ = interrupted => {}
        _ = terminate.recv() => {}
    }
}
