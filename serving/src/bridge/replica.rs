//! A bridge's lifecycle: fetch the spec and the base, wait for the engine, serve, report, shut down.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use attune_domain::{
    architecture::Architecture,
    serve::{CONTRACT_VERSION, DiskAdapter, ReplicaReply, ReplicaReport, ServeSpec},
};
use attune_inbound::{Bounds, Publisher};
use attune_node::{Cache, Folder, NodeError, Platform, http_client};
use attune_process::metrics::{SEQUENCES_RUNNING, SEQUENCES_WAITING};
use attune_text::model::TextModel;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    adapters::{EngineAdapters, Source},
    answer::Bridge,
    engine::EngineClient,
};
use crate::{
    config::{BridgeOptions, Config},
    http::router,
    replica::{first_spec, terminated},
    reports::{self, Reporting, Status},
};

/// The time that the engine has to load the base.
const ENGINE_START: Duration = Duration::from_secs(30 * 60);
/// The interval between two checks of the engine's health.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The number of failed checks in a row after which the engine has ended. One that was restarted has no adapters.
const MOST_FAILED_CHECKS: u32 = 3;
/// The time that running requests have to finish at shutdown.
const GRACE: Duration = Duration::from_secs(10);

/// Fetches the base model into the cache, and creates `link` to its folder.
///
/// # Errors
/// The platform or the object store cannot be reached, or the link cannot be created.
pub async fn fetch(config: Config, link: &Path) -> anyhow::Result<()> {
    let platform = Platform::new(http_client()?, &config.api_url, config.token.clone());
    let spec = first_spec(&platform).await.context("fetching the replica's spec failed")?;
    let cache = Cache::open(&config.cache_dir)?;
    let folder = base(&platform, &cache, &spec).await?;
    if let Some(parent) = link.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    match std::os::unix::fs::symlink(&*folder, link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create {}", link.display()))
        }
        _ => Ok(()),
    }
}

/// Serves with another engine until the platform or a signal requests a stop.
///
/// # Errors
/// The platform cannot be reached, the engine does not start or has ended, or the replica cannot serve. The reason has
/// been reported to the platform if possible.
pub async fn serve(config: Config, options: BridgeOptions) -> anyhow::Result<()> {
    let platform = Platform::new(http_client()?, &config.api_url, config.token.clone());
    let spec = first_spec(&platform).await.context("fetching the replica's spec failed")?;
    if spec.version != CONTRACT_VERSION || spec.engine != options.engine {
        bail!(
            "this bridge implements version {CONTRACT_VERSION} of the serving contract for {}, and the replica is of \
             version {} for {}",
            options.engine.name(),
            spec.version,
            spec.engine.name()
        );
    }
    let status = Arc::new(Status::default());
    let end = CancellationToken::new();
    let every = Duration::from_secs(spec.heartbeat_seconds.max(1));
    let reporting = tokio::spawn(reports::run(platform.clone(), status.clone(), every, end.clone()));
    let outcome = tokio::select! {
        outcome = open_and_serve(&platform, &config, (&spec, &options), &status, &end) => outcome,
        // Stopped before the engine was ready: no request is in progress.
        () = stopped_while_closed(&status, &end) => Ok(()),
    };
    end.cancel();
    let _ = reporting.await;
    if let Err(why) = &outcome {
        reports::last(&platform, format!("{why:#}")).await;
    }
    outcome
}

async fn base(platform: &Platform, cache: &Cache, spec: &ServeSpec) -> anyhow::Result<Folder> {
    Ok(cache.base(platform.client(), spec.base_digest, &spec.base).await?)
}

impl Reporting for Bridge {
    fn report(&self) -> ReplicaReport {
        ReplicaReport {
            active_requests: self.active.load(Ordering::Relaxed),
            resident_adapters: self.adapters.resident(),
            ..ReplicaReport::default()
        }
    }

    fn disk_changed(&self) -> bool {
        false // only listed at intervals
    }

    fn on_disk(&self) -> Result<Vec<DiskAdapter>, NodeError> {
        self.adapters.on_disk()
    }

    fn follow(self: &Arc<Self>, reply: ReplicaReply) {
        let bridge = self.clone();
        tokio::spawn(async move { bridge.adapters.follow(reply).await });
    }
}

async fn stopped_while_closed(status: &Status<Bridge>, end: &CancellationToken) {
    tokio::select! {
        () = end.cancelled() => {}
        () = terminated() => {}
    }
    if status.open.get().is_some() {
        std::future::pending::<()>().await; // the running server handles its own shutdown
    }
}

async fn open_and_serve(
    platform: &Platform,
    config: &Config,
    (spec, options): (&ServeSpec, &BridgeOptions),
    status: &Status<Bridge>,
    end: &CancellationToken,
) -> anyhow::Result<()> {
    let cache = Cache::open(&config.cache_dir)?.with_adapter_budget(spec.disk_cache);
    let folder = base(platform, &cache, spec).await?;
    let text = TextModel::open(&folder).context("the base's tokenizer or chat template cannot be used")?;
    let architecture = std::fs::read(folder.join("config.json")).context("config.json cannot be read")?;
    let architecture =
        Architecture::from_config_json(&architecture).context("the base's config.json cannot be used")?;
    let engine = EngineClient::new(options.engine, &options.engine_url)?;
    let context = until_ready(&engine).await?;
    let source = Source {
        client: platform.client().clone(),
        cache,
        text: Arc::new(text),
        engine: engine.clone(),
        max_rank: options.max_lora_rank,
    };
    let bridge = Arc::new(Bridge {
        token: config.token.clone(),
        adapters: EngineAdapters::new(source),
        vocabulary: architecture.vocab_size,
        context,
        admission: Arc::default(),
        requests: TaskTracker::new(),
        active: 0.into(),
    });
    publish_metrics(config, &bridge).await;
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, context, "listening on {address}, with the engine {}", options.engine.name());
    let _ = status.open.set((address, bridge.clone()));
    status.changed.notify_one();
    answer_until(listener, &bridge, end).await
}

/// Waits until the engine is ready. Returns its context length.
async fn until_ready(engine: &EngineClient) -> anyhow::Result<usize> {
    let deadline = Instant::now() + ENGINE_START;
    while !engine.is_healthy().await {
        if Instant::now() >= deadline {
            bail!("{} was not ready within {} s", engine.engine().in_words(), ENGINE_START.as_secs());
        }
        sleep(CHECK_INTERVAL).await;
    }
    match engine.context().await {
        Ok(context) => Ok(context),
        Err(why) => bail!("the limits of {} cannot be read: {why}", engine.engine().in_words()),
    }
}

/// Publishes metrics where that is configured, and samples the engine's load for them.
async fn publish_metrics(config: &Config, bridge: &Arc<Bridge>) {
    let Some(address) = config.metrics_listen else { return };
    let publisher = Publisher { program: "attune-serving", version: env!("CARGO_PKG_VERSION") };
    let sampled = bridge.clone();
    if let Err(why) = attune_inbound::publish_metrics(publisher, address, move || sampled.adapters.publish()).await {
        tracing::warn!(%address, %why, "metrics cannot be published");
        return;
    }
    let bridge = bridge.clone();
    tokio::spawn(async move {
        loop {
            let active = bridge.active.load(Ordering::Relaxed);
            if let Some(load) = bridge.adapters.engine().load_of(active).await {
                SEQUENCES_RUNNING.set([], load.running);
                SEQUENCES_WAITING.set([], load.waiting);
            }
            sleep(CHECK_INTERVAL).await;
        }
    });
}

/// Returns once the engine has ended.
async fn engine_ended(engine: &EngineClient) {
    let mut failed = 0;
    while failed < MOST_FAILED_CHECKS {
        sleep(CHECK_INTERVAL).await;
        failed = if engine.is_healthy().await { 0 } else { failed + 1 };
    }
}

async fn answer_until(listener: TcpListener, bridge: &Arc<Bridge>, end: &CancellationToken) -> anyhow::Result<()> {
    let bounds = Bounds::default().within(attune_inbound::raise_descriptor_limit());
    let server = attune_inbound::serve(listener, router(bridge.clone()), bounds, end.clone().cancelled_owned());
    let server = tokio::spawn(server);
    let engine = bridge.adapters.engine();
    tokio::select! {
        () = end.cancelled() => {}
        () = terminated() => end.cancel(),
        () = engine_ended(engine) => bail!("{} does not answer any more", engine.engine().in_words()),
    }
    bridge.requests.close();
    if timeout(GRACE, bridge.requests.wait()).await.is_err() {
        tracing::warn!("some requests did not finish in {} s", GRACE.as_secs());
    }
    // The connections only have their last lines to send.
    let _ = timeout(Duration::from_secs(1), server).await;
    Ok(())
}
