//! The replica's platform and object store, on loopback: the contract of [`attune_domain::serve`] with one spec.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use attune_domain::{
    bytes::Bytes,
    id::ReplicaId,
    placement::ServedCompute,
    run::Directive,
    serve::{CONTRACT_VERSION, DEFAULT_DISK_CACHE, Engine, KvCacheDtype, ReplicaReply, ReplicaReport, ServeSpec},
    spec::Quantization,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use crate::adapters::remote_files;

/// The size of the chunks in which files are sent, in bytes.
const CHUNK: usize = 1 << 20;
/// The maximum time from the start of a replica to its address. A first start fetches and quantizes the base.
const START_TIME: Duration = Duration::from_secs(300);

/// The settings of a replica that its spec contains.
#[derive(Clone)]
pub(crate) struct Served {
    /// The base's Hugging Face folder.
    pub(crate) base: PathBuf,
    pub(crate) quantization: Quantization,
    pub(crate) compute: ServedCompute,
    /// `true`: tokens are drafted from the text so far, and verified.
    pub(crate) speculation: bool,
    pub(crate) threads: u32,
    /// The memory for adapters, and as much for keys and values: the sum of both.
    pub(crate) memory: Bytes,
}

/// The platform of one replica.
pub(crate) struct Platform {
    url: String,
    state: Arc<Played>,
}

struct Played {
    spec: ServeSpec,
    base: PathBuf,
    adapters: PathBuf,
    /// The time that the object store takes before the first byte of an adapter's file.
    delay: Mutex<Duration>,
    fetched: OnceLock<Instant>,
    opened: watch::Sender<Option<Opened>>,
}

/// The outcome of a replica's start.
#[derive(Clone)]
struct Opened {
    address: Result<String, String>,
    at: Instant,
}

/// The times of a replica's start: when it fetched its spec, and when it reported its address.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) fetched: Instant,
    pub(crate) opened: Instant,
}

impl Platform {
    /// Starts the platform of a replica that serves `served`, with the adapters in the folder `adapters`.
    pub(crate) async fn start(served: Served, adapters: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let base = remote_files(&served.base, &format!("{url}/base")).await?;
        let weights = base.iter().max_by_key(|file| file.bytes.0).context("the base has no files")?;
        let spec = ServeSpec {
            version: CONTRACT_VERSION,
            replica_id: ReplicaId::new(Uuid::from_u128(1)),
            base_digest: weights.sha256,
            base,
            quantization: served.quantization,
            compute: served.compute,
            speculation: served.speculation,
            draft: None,
            kv_cache_dtype: KvCacheDtype::Auto,
            engine: Engine::Attune,
            heartbeat_seconds: 1,
            memory_budget: served.memory,
            disk_cache: DEFAULT_DISK_CACHE,
            threads: served.threads,
        };
        let (delay, fetched, opened) = (Mutex::default(), OnceLock::new(), watch::Sender::default());
        let state = Arc::new(Played { spec, base: served.base, adapters, delay, fetched, opened });
        let app = Router::new()
            .route("/internal/replica/spec", get(spec_of))
            .route("/internal/replica/reports", post(record))
            .route("/base/{file}", get(base_file))
            .route("/adapters/{adapter}/{file}", get(adapter_file))
            .with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, state })
    }

    /// Returns the base URL of the platform and of its object store.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Sets the time that the object store takes before the first byte of an adapter's file.
    pub(crate) fn delay_adapters(&self, delay: Duration) {
        *self.state.delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Waits until the replica has an address. Returns it and the times of its start.
    pub(crate) async fn address(&self) -> Result<(String, Start)> {
        let mut opened = self.state.opened.subscribe();
        let outcome = tokio::time::timeout(START_TIME, opened.wait_for(Option::is_some)).await;
        let opened = outcome.context("the replica did not start")??.clone().context("no report")?;
        let fetched = *self.state.fetched.get().context("the replica did not fetch its spec")?;
        match opened.address {
            Ok(address) => Ok((address, Start { fetched, opened: opened.at })),
            Err(why) => bail!("the replica has failed: {why}"),
        }
    }
}

async fn spec_of(State(played): State<Arc<Played>>) -> Json<ServeSpec> {
    played.fetched.get_or_init(Instant::now);
    Json(played.spec.clone())
}

async fn record(State(played): State<Arc<Played>>, Json(report): Json<ReplicaReport>) -> Json<ReplicaReply> {
    let outcome = report.failed.map(Err).or_else(|| report.address.map(Ok));
    if let Some(address) = outcome {
        played.opened.send_if_modified(|opened| {
            let is_first = opened.is_none();
            if is_first {
                *opened = Some(Opened { address, at: Instant::now() });
            }
            is_first
        });
    }
    Json(ReplicaReply::new(Directive::Continue))
}

async fn base_file(State(played): State<Arc<Played>>, Path(file): Path<String>) -> Result<Body, StatusCode> {
    body(played.base.join(file)).await
}

async fn adapter_file(
    State(played): State<Arc<Played>>,
    Path((adapter, file)): Path<(String, String)>,
) -> Result<Body, StatusCode> {
    let delay = *played.delay.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::time::sleep(delay).await;
    body(played.adapters.join(adapter).join(file)).await
}

async fn body(path: PathBuf) -> Result<Body, StatusCode> {
    let file = tokio::fs::File::open(path).await.map_err(|_| StatusCode::NOT_FOUND)?;
    Ok(Body::from_stream(ReaderStream::with_capacity(file, CHUNK)))
}
