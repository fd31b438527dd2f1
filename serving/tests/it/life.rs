//! A replica's lifecycle against a test platform.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    id::ReplicaId,
    placement::ServedCompute,
    run::Directive,
    serve::{
        AdapterRef, AdapterTier, CONTRACT_VERSION, DEFAULT_DISK_CACHE, DraftSpec, Engine, Form, GenerateRequest,
        KvCacheDtype, Priority, Prompt, ReplicaReply, ReplicaReport, Sampling, ServeSpec,
    },
    spec::Quantization,
};
use attune_process::log::Format;
use attune_serving::{config::Config, replica::serve};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::world::World;

pub(crate) struct Played {
    spec: ServeSpec,
    said: watch::Sender<Vec<ReplicaReport>>,
    reply: Mutex<Result<ReplicaReply, StatusCode>>,
}

impl Played {
    async fn start(world: &World) -> (Arc<Self>, Config) {
        Self::start_with(world, |spec| spec).await
    }

    pub(crate) async fn start_with(world: &World, change: impl FnOnce(ServeSpec) -> ServeSpec) -> (Arc<Self>, Config) {
        let spec = change(ServeSpec {
            version: CONTRACT_VERSION,
            replica_id: ReplicaId::new(Uuid::from_u128(1)),
            base_digest: Sha256::from_digest([0xd1; 32]),
            base: world.remote(&world.base()).await,
            quantization: Quantization::Nf4 { double_quant: true },
            compute: ServedCompute::Packed,
            engine: Engine::Attune,
            speculation: true,
            draft: None,
            kv_cache_dtype: KvCacheDtype::Auto,
            heartbeat_seconds: 1,
            memory_budget: Bytes::mib(64),
            disk_cache: DEFAULT_DISK_CACHE,
            threads: 1,
        });
        let said = watch::Sender::default();
        let reply_with = Mutex::new(Ok(ReplicaReply::new(Directive::Continue)));
        let played = Arc::new(Self { spec, said, reply: reply_with });
        let app = Router::new()
            .route("/internal/replica/spec", get(async |State(p): State<Arc<Self>>| Json(p.spec.clone())))
            .route("/internal/replica/reports", post(reply))
            .with_state(played.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config {
            api_url: format!("http://{}", listener.local_addr().unwrap()),
            cache_dir: world.path("cache"),
            listen: ([127, 0, 0, 1], 0).into(),
            token: "secret".into(),
            max_batch: 4,
            exit_with_parent: false,
            log: "".parse().unwrap(),
            log_format: Format::default(),
            metrics_listen: None,
        };
        tokio::spawn(async move { axum::serve(listener, app).await });
        (played, config)
    }

    pub(crate) async fn until(&self, what: impl Fn(&ReplicaReport) -> bool) -> ReplicaReport {
        let mut said = self.said.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(60), said.wait_for(|all| all.iter().any(&what))).await;
        waited.unwrap().unwrap().iter().find(|report| what(report)).unwrap().clone()
    }

    /// Pins an adapter in the replies to further reports.
    pub(crate) fn pin(&self, adapter: AdapterRef) {
        let mut reply = self.reply.lock().unwrap();
        let reply = reply.as_mut().unwrap();
        reply.pinned.push(adapter.id);
        reply.prefetch.push(adapter);
    }

    /// Sets the reply to further reports.
    pub(crate) fn tell(&self, reply: Result<ReplicaReply, StatusCode>) {
        *self.reply.lock().unwrap() = reply;
    }

    /// Forgets the reports so far.
    pub(crate) fn clear(&self) {
        self.said.send_modify(Vec::clear);
    }
}

async fn reply(
    State(played): State<Arc<Played>>,
    headers: HeaderMap,
    Json(report): Json<ReplicaReport>,
) -> Result<Json<ReplicaReply>, StatusCode> {
    assert_eq!(headers["authorization"], "Bearer secret");
    played.said.send_modify(|all| all.push(report));
    played.reply.lock().unwrap().clone().map(Json)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_says_where_it_is_answers_and_ends_when_notified() {
    for end in [Ok(ReplicaReply::new(Directive::Stop)), Err(StatusCode::CONFLICT)] {
        let world = World::new().await;
        let (played, config) = Played::start(&world).await;
        let replica = tokio::spawn(serve(config));
        let address = played.until(|report| report.address.is_some()).await.address.unwrap();
        let adapter = world.adapter(1, None).await;
        let id = adapter.id;
        let sampling = Sampling { temperature: 0.0, max_tokens: Some(5), ..Sampling::default() };
        let prompt = Prompt::Text { text: "hello".into() };
        let (request_id, adapter) = ("one".into(), Some(adapter));
        let request = GenerateRequest {
            request_id,
            project: "p".into(),
            priority: Priority::Live,
            adapter,
            keep: None,
            prompt,
            truncate: None,
            echo: false,
            form: Form::Free,
            tools: None,
            choices: 1,
            sampling,
        };
        let answer = attune_node::http_client().unwrap();
        let answer = answer.post(format!("http://{address}/generate")).bearer_auth("secret").json(&request);
        let body = answer.send().await.unwrap().text().await.unwrap();
        assert!(body.lines().last().unwrap().contains("done"), "{body}");
        let report = played.until(|report| report.resident_adapters == [id]).await;
        let state = &report.adapter_states[0];
        assert_eq!((state.id, state.loaded_from), (id, AdapterTier::Store));
        assert!(state.bytes.0 > 0);
        let listed = played.until(|report| report.disk_adapters.as_ref().is_some_and(|all| !all.is_empty())).await;
        assert_eq!(listed.disk_adapters.unwrap()[0].id, id);
        played.tell(end);
        tokio::time::timeout(Duration::from_secs(20), replica).await.unwrap().unwrap().unwrap();
    }
}

/// A replica with a draft model, and with keys and values in 8 bits, starts; one whose draft cannot be loaded reports
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_is_fetched_and_loaded() {
    let world = World::new().await;
    for (folder, seed) in [("draft", 8), ("bad", 9)] {
        attune_tests::tiny::write(&world.path(folder), seed).unwrap();
    }
    std::fs::write(world.path("bad").join("config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    let base_digest = Sha256::from_digest([0xd2; 32]);
    let good = DraftSpec { base_digest, base: world.remote(&world.path("draft")).await };
    let base_digest = Sha256::from_digest([0xd3; 32]);
    let bad = DraftSpec { base_digest, base: world.remote(&world.path("bad")).await };

    let change = |spec: ServeSpec| ServeSpec { draft: Some(good), kv_cache_dtype: KvCacheDtype::Int8, ..spec };
    let (played, config) = Played::start_with(&world, change).await;
    let replica = tokio::spawn(serve(config));
    let address = played.until(|report| report.address.is_some()).await.address.unwrap();
    let client = attune_node::http_client().unwrap();
    let health = client.get(format!("http://{address}/healthz")).send().await.unwrap();
    assert_eq!(health.status(), 200);
    played.tell(Ok(ReplicaReply::new(Directive::Stop)));
    tokio::time::timeout(Duration::from_secs(20), replica).await.unwrap().unwrap().unwrap();

    let (played, config) = Played::start_with(&world, |spec| ServeSpec { draft: Some(bad), ..spec }).await;
    assert!(serve(config).await.is_err());
    let why = played.until(|report| report.failed.is_some()).await.failed.unwrap();
    assert!(why.contains("the draft model's weights cannot be used"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_cannot_be_loaded_is_reported() {
    let world = World::new().await;
    std::fs::write(world.base().join("config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    let (played, config) = Played::start(&world).await;
    assert!(serve(config).await.is_err());
    let why = played.until(|report| report.failed.is_some()).await.failed.unwrap();
    assert!(why.contains("gpt2 is not supported"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_loads_what_is_pinned_and_removes_what_was_deleted() {
    let world = World::new().await;
    let (played, config) = Played::start(&world).await;
    let adapter = world.adapter(1, None).await;
    let id = adapter.id;
    let go_on = || ReplicaReply::new(Directive::Continue);
    played.tell(Ok(ReplicaReply { pinned: vec![id], prefetch: vec![adapter], ..go_on() }));
    let replica = tokio::spawn(serve(config));
    let report = played.until(|report| report.resident_adapters == [id]).await;
    assert_eq!(report.adapter_states[0].requests, 0, "no request came");
    played.until(|report| report.disk_adapters.as_ref().is_some_and(|all| all.len() == 1)).await;

    played.tell(Ok(ReplicaReply { forget: vec![id], ..go_on() }));
    played.clear();
    let is_gone = |report: &ReplicaReport| report.resident_adapters.is_empty() && report.disk_adapters == Some(vec![]);
    played.until(is_gone).await;
    played.tell(Ok(ReplicaReply::new(Directive::Stop)));
    tokio::time::timeout(Duration::from_secs(20), replica).await.unwrap().unwrap().unwrap();
}
