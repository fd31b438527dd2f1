//! A replica's lifecycle against a test platform.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    id::ReplicaId,
    run::Directive,
    serve::{CONTRACT_VERSION, Form, GenerateRequest, Prompt, ReplicaReply, ReplicaReport, Sampling, ServeSpec},
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

struct Played {
    spec: ServeSpec,
    said: watch::Sender<Vec<ReplicaReport>>,
    directive: Mutex<Result<Directive, StatusCode>>,
}

impl Played {
    async fn start(world: &World) -> (Arc<Self>, Config) {
        let spec = ServeSpec {
            version: CONTRACT_VERSION,
            replica_id: ReplicaId::new(Uuid::from_u128(1)),
            base_digest: Sha256::from_digest([0xd1; 32]),
            base: world.remote(&world.base()).await,
            quantization: Quantization::Nf4 { double_quant: true },
            heartbeat_seconds: 1,
            memory_budget: Bytes::mib(64),
            threads: 1,
        };
        let said = watch::Sender::default();
        let played = Arc::new(Self { spec, said, directive: Mutex::new(Ok(Directive::Continue)) });
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

    async fn until(&self, what: impl Fn(&ReplicaReport) -> bool) -> ReplicaReport {
        let mut said = self.said.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(60), said.wait_for(|all| all.iter().any(&what))).await;
        waited.unwrap().unwrap().iter().find(|report| what(report)).unwrap().clone()
    }

    fn tell(&self, directive: Result<Directive, StatusCode>) {
        *self.directive.lock().unwrap() = directive;
    }
}

async fn reply(
    State(played): State<Arc<Played>>,
    headers: HeaderMap,
    Json(report): Json<ReplicaReport>,
) -> Result<Json<ReplicaReply>, StatusCode> {
    assert_eq!(headers["authorization"], "Bearer secret");
    played.said.send_modify(|all| all.push(report));
    let directive = *played.directive.lock().unwrap();
    directive.map(|directive| Json(ReplicaReply { directive }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_says_where_it_is_answers_and_ends_when_notified() {
    for end in [Ok(Directive::Stop), Err(StatusCode::CONFLICT)] {
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
            adapter,
            prompt,
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
        played.until(|report| report.resident_adapters == [id]).await;
        played.tell(end);
        tokio::time::timeout(Duration::from_secs(20), replica).await.unwrap().unwrap().unwrap();
    }
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
