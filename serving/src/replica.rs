//! A replica's lifecycle: fetch the spec, load the base, start the engine, serve, report, shut down.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use attune_domain::{
    bytes::Bytes,
    placement::Placement,
    run::Directive,
    serve::{CONTRACT_VERSION, ReplicaReply, ReplicaReport, ServeSpec},
    spec::Quantization,
};
use attune_inbound::{Bounds, Publisher};
use attune_model::{decoder::Decoder, served::Hold};
use attune_node::{Cache, NodeError, Platform, http_client};
use attune_text::model::TextModel;
use backon::{ExponentialBuilder, Retryable};
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    adapters::{Adapters, Source},
    answering::grammar::Grammars,
    app::App,
    config::Config,
    decoding::engine::{self, Limits},
    http::router,
    residency::ResidentBudget,
};

/// The time that running requests have to finish at shutdown.
const GRACE: Duration = Duration::from_secs(10);
/// The maximum time that a request waits for its first slot.
const MOST_WAIT: Duration = Duration::from_secs(120);

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
    let reports = tokio::spawn(report(platform.clone(), status.clone(), every, end.clone()));
    let outcome = tokio::select! {
        outcome = open_and_serve(&platform, &config, spec, &status, &end) => outcome,
        // Stopped or interrupted before the base was loaded: no request is in progress.
        () = stopped_while_closed(&status, &end) => Ok(()),
    };
    end.cancel();
    let _ = reports.await;
    if let Err(why) = &outcome {
        last_words(&platform, format!("{why:#}")).await;
    }
    outcome
}

/// The state that reports contain.
#[derive(Default)]
struct Status {
    open: OnceLock<(SocketAddr, Arc<App>)>,
    changed: Notify,
}

impl Status {
    fn report(&self) -> ReplicaReport {
        let open = self.open.get();
        ReplicaReport {
            address: open.map(|(address, _)| address.to_string()),
            active_requests: open.map_or(0, |(_, app)| app.active.load(Ordering::Relaxed)),
            resident_adapters: open.map(|(_, app)| app.adapters.resident()).unwrap_or_default(),
            failed: None,
        }
    }
}

/// Publishes metrics where that is configured. Several replicas may share a machine, and with it the configuration: one
/// whose address is taken serves without metrics.
async fn publish_metrics(config: &Config, status: &Arc<Status>) {
    let Some(address) = config.metrics_listen else { return };
    let publisher = Publisher { program: "attune-serving", version: env!("CARGO_PKG_VERSION") };
    let status = status.clone();
    let sample = move || status.open.get().into_iter().for_each(|(_, app)| app.adapters.publish());
    if let Err(why) = attune_inbound::publish_metrics(publisher, address, sample).await {
        tracing::warn!(%address, %why, "metrics cannot be published");
    }
}

fn retries() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(8).with_jitter()
}

async fn first_spec(platform: &Platform) -> Result<ServeSpec, NodeError> {
    let ask = || async { platform.get::<ServeSpec>("/internal/replica/spec").await };
    ask.retry(retries()).when(NodeError::is_passing).await
}

async fn last_words(platform: &Platform, why: String) {
    let report = ReplicaReport { address: None, active_requests: 0, resident_adapters: Vec::new(), failed: Some(why) };
    let tell = || async { platform.post::<_, ReplicaReply>("/internal/replica/reports", &report).await };
    if let Err(untold) = tell.retry(retries().with_max_times(4)).when(NodeError::is_passing).await {
        tracing::warn!(why = %untold, "the failure could not be reported");
    }
}

/// Reports at every heartbeat and at every change, until `end`. The platform's response may request the stop.
async fn report(platform: Platform, status: Arc<Status>, every: Duration, end: CancellationToken) {
    loop {
        match platform.post::<_, ReplicaReply>("/internal/replica/reports", &status.report()).await {
            Ok(ReplicaReply { directive: Directive::Continue }) => {}
            Ok(ReplicaReply { directive: Directive::Stop }) => {
                tracing::info!("the platform requested a stop");
                return end.cancel();
            }
            Err(why) if why.is_passing() => tracing::warn!(%why, "a report failed"),
            Err(why) => {
                tracing::warn!(%why, "the platform has ended this replica");
                return end.cancel();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = status.changed.notified() => {}
            () = end.cancelled() => return,
        }
    }
}

async fn stopped_while_closed(status: &Status, end: &CancellationToken) {
    end.cancelled().await;
    if status.open.get().is_some() {
        std::future::pending::<()>().await; // the running server handles its own shutdown
    }
}

async fn open_and_serve(
    platform: &Platform,
    config: &Config,
    spec: ServeSpec,
    status: &Status,
    end: &CancellationToken,
) -> anyhow::Result<()> {
    let cache = Cache::open(&config.cache_dir)?;
    let folder = cache.folder(platform.client(), "base", &spec.base_digest.to_string(), &spec.base).await?;
    let threads = i32::try_from(spec.threads).unwrap_or(1).max(1);
    let packed = cache.packed_base(spec.base_digest, spec.quantization)?;
    let quantization = spec.quantization;
    let (decoder, text) = tokio::task::spawn_blocking(move || load(&folder, quantization, &packed, threads)).await??;

    // Half for adapters and half for keys and values: neither can starve the other, so no request waits for one that
    // waits for it.
    let half = Bytes(spec.memory_budget.0 / 2);
    let source = Source {
        client: platform.client().clone(),
        cache,
        architecture: decoder.architecture().clone(),
        text: Arc::new(text),
        grammars: Arc::new(Grammars::new(usize::try_from(decoder.architecture().vocab_size).unwrap_or(0))),
    };
    let limits = Limits { max_batch: usize::from(config.max_batch), kv_memory: half, max_wait: MOST_WAIT };
    let (engine, ended) = engine::start(decoder, limits)?;
    let app = Arc::new(App {
        token: config.token.clone(),
        adapters: Adapters::new(source, ResidentBudget::new(half)),
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

fn load(
    folder: &Path,
    quantization: Quantization,
    packed: &Path,
    threads: i32,
) -> anyhow::Result<(Decoder, TextModel)> {
    tch::set_num_threads(threads);
    let text = TextModel::open(folder).context("the base's tokenizer or chat template cannot be used")?;
    let decoder = Decoder::load_served(folder, quantization, Placement::default(), packed, Hold::Unpacked)
        .context("the base's weights cannot be used")?;
    Ok((decoder, text))
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
async fn terminated() {
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
