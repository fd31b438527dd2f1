//! A test platform: its side of the run contract, and an object store.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
};

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    id::{CheckpointId, JobId, RunId},
    placement::Placement,
    run::{
        Blob, BlobGrant, BlobsWanted, CONTRACT_VERSION, Directive, Plan, RemoteFile, Reply, Report, RunEvent,
        task::{Resume, RunHeader, TaskBase, TaskSpec, TrainTask},
    },
    spec::{Requested, TrainSpec},
};
use attune_process::log::Format;
use attune_trainer::{
    config::Config,
    run::{RunEnd, run},
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path as UrlPath, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use sha2::Digest;
use tokio::{process::Command, sync::Notify};

pub(crate) const TOKEN: &str = "a-run-token";
/// The program.
pub(crate) const TRAINER: &str = env!("CARGO_BIN_EXE_attune-trainer");

/// The platform's state.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) task: Option<TaskSpec>,
    /// Accepted events, without duplicates.
    pub(crate) events: Vec<RunEvent>,
    /// All received reports, including rejected ones.
    pub(crate) reports: Vec<Report>,
    pub(crate) objects: HashMap<Sha256, Vec<u8>>,
    /// Status codes to return before normal responses. 200 processes the request and loses the response.
    pub(crate) troubles: VecDeque<StatusCode>,
    /// Responds `Stop` after this step has been reported.
    pub(crate) stop_after: Option<u64>,
    /// Responds `Stop` to the first report.
    pub(crate) stop_at_once: bool,
    /// Responds that the lease is stale after this step has been reported.
    pub(crate) stale_after: Option<u64>,
    /// The number of received requests by kind.
    pub(crate) requests: HashMap<Request, u64>,
    /// The request at which the trainer is killed.
    pub(crate) deadly: Option<Deadly>,
}

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Report,
    Grant,
    Put,
}

pub(crate) const REQUESTS: [Request; 3] = [Request::Report, Request::Grant, Request::Put];

/// A request that gets no response: the trainer is killed instead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadly {
    pub(crate) request: Request,
    /// The ordinal number of the request, from 1.
    pub(crate) nth: u64,
    /// `true` if the request is processed before the kill.
    pub(crate) taken: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Platform {
    world: Arc<Mutex<World>>,
    pub(crate) url: String,
    /// Notified when the request at which the trainer is killed has arrived.
    pub(crate) death: Arc<Notify>,
}

fn sha256(content: &[u8]) -> Sha256 {
    Sha256::from_digest(sha2::Sha256::digest(content).into())
}

impl Platform {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let platform = Self { url: format!("http://{}", listener.local_addr().unwrap()), ..Self::default() };
        let routes = Router::new()
            .route("/internal/run/spec", get(spec))
            .route("/internal/run/reports", post(reports))
            .route("/internal/run/blobs", post(blobs))
            .route("/objects/{sha256}", get(object).put(put_object))
            .layer(DefaultBodyLimit::disable())
            .with_state(platform.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        platform
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Stores an object and returns its description.
    pub(crate) fn file(&self, name: &str, content: Vec<u8>) -> RemoteFile {
        let (sha256, bytes) = (sha256(&content), Bytes(content.len() as u64));
        self.world().objects.insert(sha256, content);
        RemoteFile { name: name.into(), url: format!("{}/objects/{sha256}", self.url), sha256, bytes }
    }

    /// Counts a request. Returns the kill that applies to it, if any.
    fn count(&self, request: Request) -> Option<Deadly> {
        let mut world = self.world();
        let count = world.requests.entry(request).or_default();
        *count += 1;
        let count = *count;
        world.deadly.filter(|deadly| deadly.request == request && deadly.nth == count)
    }

    /// Requests the kill of the trainer, and never returns a response.
    async fn kill<T>(&self) -> T {
        self.death.notify_one();
        std::future::pending().await
    }

    pub(crate) fn folder(&self, folder: &Path) -> Vec<RemoteFile> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| self.file(&e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
    }

    /// Returns the spec of a run over a model's folder and a training file.
    pub(crate) fn offer(&self, model: &Path, rows: &str, asked: &Requested) -> TrainTask {
        let lines = rows.lines().count() as u64;
        TrainTask {
            run: RunHeader {
                traceparent: None,
                version: CONTRACT_VERSION,
                job_id: JobId::new(uuid(1)),
                run_id: RunId::new(uuid(2)),
                run_lease: 7,
                heartbeat_seconds: 1,
            },
            base: TaskBase {
                files: self.folder(model),
                digest: Sha256::from_digest([0xd1; 32]),
                name: "tiny".into(),
                origin: None,
                license: None,
            },
            training_file: self.file("train.jsonl", rows.into()),
            validation_file: None,
            train: TrainSpec::check(asked, lines, 128).unwrap(),
            template_now: 0,
            plan: Plan {
                micro_batch_size: 2,
                micro_batch_tokens: 1024,
                checkpointing: true,
                threads: 1,
                predicted_peak: Bytes::mib(64),
                placement: Placement::default(),
            },
            always_warm_up: false,
            continue_from: None,
            resume: None,
        }
    }

    /// Returns the checkpoint after `step`, to resume from.
    pub(crate) fn resume_from(&self, step: u64) -> Resume {
        Resume { checkpoint_id: CheckpointId::new(uuid(3)), step, files: self.remote(self.checkpoint(step)) }
    }

    /// Returns the download URLs of uploaded blobs.
    pub(crate) fn remote(&self, blobs: Vec<Blob>) -> Vec<RemoteFile> {
        let remote = |blob: Blob| RemoteFile {
            url: format!("{}/objects/{}", self.url, blob.sha256),
            name: blob.name,
            sha256: blob.sha256,
            bytes: blob.bytes,
        };
        blobs.into_iter().map(remote).collect()
    }

    fn checkpoint(&self, wanted: u64) -> Vec<Blob> {
        let world = self.world();
        let found = world.events.iter().rev().find_map(|event| match event {
            RunEvent::Checkpointed { step, files, .. } if *step == wanted => Some(files.clone()),
            _ => None,
        });
        found.unwrap()
    }

    /// Runs `spec` in this process, with `cache` as the node's cache. Returns whether the last event was accepted, and
    /// all events.
    pub(crate) async fn run(&self, spec: TrainTask, cache: &Path) -> (bool, Vec<RunEvent>) {
        {
            let mut world = self.world();
            world.task = Some(TaskSpec::Train(spec));
            world.events.clear();
            world.reports.clear();
            world.requests.clear();
        }
        let config = Config {
            api_url: self.url.clone(),
            cache_dir: cache.into(),
            token: TOKEN.to_owned().into(),
            log_format: Format::default(),
            exit_with_parent: false,
        };
        let end = run(config).await.unwrap();
        (end == RunEnd::Accepted, self.world().events.clone())
    }

    /// Returns the command of a trainer in a separate process, with `cache` as the node's cache.
    pub(crate) fn trainer(&self, cache: &Path) -> Command {
        self.as_trainer(Command::new(TRAINER), cache)
    }

    /// Returns a command that starts [`TRAINER`], with the arguments and the environment of a trainer.
    pub(crate) fn as_trainer(&self, mut command: Command, cache: &Path) -> Command {
        command
            .args(["--api-url", &self.url, "--cache-dir"])
            .arg(cache)
            .env("ATTUNE_RUN_TOKEN", TOKEN)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

pub(crate) fn uuid(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}

fn refused(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_none_or(|value| value != &format!("Bearer {TOKEN}"))
}

async fn spec(State(platform): State<Platform>, headers: HeaderMap) -> Response {
    if refused(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Json(platform.world().task.clone()).into_response()
}

async fn reports(State(platform): State<Platform>, headers: HeaderMap, Json(report): Json<Report>) -> Response {
    if refused(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let deadly = platform.count(Request::Report);
    if deadly.is_some_and(|deadly| !deadly.taken) {
        return platform.kill().await;
    }
    let reply = taken(&platform, report);
    if deadly.is_some() { platform.kill().await } else { reply }
}

fn taken(platform: &Platform, report: Report) -> Response {
    let mut world = platform.world();
    world.reports.push(report.clone());
    let trouble = world.troubles.pop_front();
    if let Some(status) = trouble.filter(|status| *status != StatusCode::OK) {
        return status.into_response();
    }
    let reached = |world: &World, step: Option<u64>| {
        step.is_some_and(|wanted| world.events.iter().any(|e| matches!(e, RunEvent::Step(m) if m.step >= wanted)))
    };
    let lease = world.task.as_ref().map(|task| task.terms().run_lease);
    if Some(report.run_lease) != lease || reached(&world, world.stale_after) {
        return StatusCode::CONFLICT.into_response();
    }
    let known = world.events.len() as u64;
    assert!(report.first_sequence <= known, "events were left out");
    let new = report.events.into_iter().skip((known - report.first_sequence) as usize);
    world.events.extend(new);
    if trouble.is_some() {
        return StatusCode::BAD_GATEWAY.into_response(); // processed, but the response is lost
    }
    let directive =
        if world.stop_at_once || reached(&world, world.stop_after) { Directive::Stop } else { Directive::Continue };
    Json(Reply { directive }).into_response()
}

async fn blobs(State(platform): State<Platform>, Json(wanted): Json<BlobsWanted>) -> Json<Vec<BlobGrant>> {
    if platform.count(Request::Grant).is_some() {
        return platform.kill().await;
    }
    let world = platform.world();
    let grants = wanted.blobs.into_iter().map(|blob| BlobGrant {
        url: (!world.objects.contains_key(&blob.sha256)).then(|| format!("{}/objects/{}", platform.url, blob.sha256)),
        sha256: blob.sha256,
    });
    Json(grants.collect())
}

async fn object(State(platform): State<Platform>, UrlPath(key): UrlPath<String>) -> Response {
    match key.parse::<Sha256>().ok().and_then(|key| platform.world().objects.get(&key).cloned()) {
        Some(content) => content.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn put_object(
    State(platform): State<Platform>,
    UrlPath(key): UrlPath<Sha256>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> StatusCode {
    assert!(headers.contains_key("content-length"), "object stores take no chunked bodies");
    assert_eq!(sha256(&body), key);
    let deadly = platform.count(Request::Put);
    if deadly.is_some_and(|deadly| !deadly.taken) {
        return platform.kill().await;
    }
    platform.world().objects.insert(key, body.to_vec());
    match deadly {
        Some(_) => platform.kill().await,
        None => StatusCode::OK,
    }
}
