//! The bridge, with engines that follow the documented APIs of vLLM and LoRAX. They answer with fixed tokens and record
//! their requests.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_domain::{
    run::Directive,
    serve::{
        AdapterRef, AdapterTier, Engine, FinishReason, Form, GenerateEvent, GenerateRequest, ReplicaReply, Sampling,
        ServeSpec,
    },
    spec::Quantization,
};
use attune_serving::{bridge, config::BridgeOptions};
use attune_text::model::TextModel;
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::stream;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    door::{ask, chat, failure, reason, said, scores, text},
    life::Played,
    world::World,
};

/// The context length of the scripted engines.
const CONTEXT: u64 = 200;

/// An engine that follows a documented API.
struct Scripted {
    /// The answer's tokens.
    tokens: Vec<u32>,
    /// The requests, with their paths.
    asked: Mutex<Vec<(String, Value)>>,
    is_healthy: Mutex<bool>,
}

impl Scripted {
    fn note(&self, path: &str, body: Value) {
        self.asked.lock().unwrap().push((path.to_owned(), body));
    }

    fn requests(&self, path: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(asked, _)| asked == path).map(|(_, body)| body.clone()).collect()
    }
}

fn events(all: Vec<Value>, last: Option<&str>) -> Response {
    let lines = all.into_iter().map(|event| format!("data: {event}\n\n"));
    let lines: Vec<_> = lines.chain(last.map(|last| format!("data: {last}\n\n"))).map(Ok::<_, Infallible>).collect();
    ([("content-type", "text/event-stream")], Body::from_stream(stream::iter(lines))).into_response()
}

/// vLLM's `POST /v1/completions`: a chunk for each token.
async fn completions(State(engine): State<Arc<Scripted>>, Json(body): Json<Value>) -> Response {
    engine.note("completions", body.clone());
    let most = usize::try_from(body["max_tokens"].as_u64().unwrap()).unwrap();
    let tokens = &engine.tokens[..most.min(engine.tokens.len())];
    let chunk = |at: usize| {
        let id = tokens[at];
        let is_last = at + 1 == tokens.len();
        let logprobs = (!body["logprobs"].is_null()).then(|| {
            json!({"text_offset": [0], "tokens": [format!("token_id:{id}")], "token_logprobs": [-0.5],
                "top_logprobs": [{format!("token_id:{id}"): -0.5}]})
        });
        let reason = is_last.then_some(if most < engine.tokens.len() { "length" } else { "stop" });
        json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "usage": null,
            "choices": [{"index": 0, "text": "ignored", "logprobs": logprobs, "finish_reason": reason,
                "stop_reason": null, "token_ids": [id]}]})
    };
    events((0..tokens.len()).map(chunk).collect(), Some("[DONE]"))
}

async fn load(State(engine): State<Arc<Scripted>>, Json(body): Json<Value>) -> Response {
    let path = body["lora_path"].as_str().unwrap().to_owned();
    if engine.requests("load").iter().any(|load| load["lora_name"] == body["lora_name"]) {
        let why = format!("The lora adapter '{}' has already been loaded.", body["lora_name"].as_str().unwrap());
        let message = json!({"error": {"message": why, "type": "InvalidUserInput", "code": 400}});
        return (StatusCode::BAD_REQUEST, Json(message)).into_response();
    }
    engine.note("load", body);
    if std::path::Path::new(&path).join("adapter_config.json").is_file() {
        return "Success: LoRA adapter added successfully.".into_response();
    }
    let message = json!({"error": {"message": "No adapter found", "type": "NotFoundError", "code": 404}});
    (StatusCode::NOT_FOUND, Json(message)).into_response()
}

async fn unload(State(engine): State<Arc<Scripted>>, Json(body): Json<Value>) -> &'static str {
    engine.note("unload", body);
    "Success: LoRA adapter removed successfully."
}

/// LoRAX's `POST /generate_stream`.
async fn generate_stream(State(engine): State<Arc<Scripted>>, Json(body): Json<Value>) -> Response {
    engine.note("generate_stream", body);
    let count = engine.tokens.len();
    let event = |(at, id): (usize, &u32)| {
        let details = (at + 1 == count)
            .then(|| json!({"finish_reason": "length", "prompt_tokens": 1, "generated_tokens": count, "seed": null}));
        json!({"token": {"id": id, "text": "ignored", "logprob": -0.5, "special": false}, "generated_text": null,
            "details": details})
    };
    events(engine.tokens.iter().enumerate().map(event).collect(), None)
}

async fn health(State(engine): State<Arc<Scripted>>) -> StatusCode {
    if *engine.is_healthy.lock().unwrap() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// A bridge with its engine and its platform.
struct Bridged {
    world: World,
    engine: Arc<Scripted>,
    played: Arc<Played>,
    address: String,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Bridged {
    async fn start(kind: Engine, answer: &str) -> Self {
        let world = World::new().await;
        let text = TextModel::open(&world.base()).unwrap();
        let tokens = text.tokenizer().encode(answer).unwrap();
        let engine = Arc::new(Scripted { tokens, asked: Mutex::default(), is_healthy: Mutex::new(true) });
        let models = json!({"object": "list", "data": [{"id": "base", "object": "model", "max_model_len": CONTEXT}]});
        let app = Router::new()
            .route("/health", get(health))
            .route("/v1/models", get(move || async move { Json(models) }))
            .route("/v1/completions", post(completions))
            .route("/v1/load_lora_adapter", post(load))
            .route("/v1/unload_lora_adapter", post(unload))
            .route("/info", get(|| async { Json(json!({"model_id": "/base", "max_total_tokens": CONTEXT})) }))
            .route("/generate_stream", post(generate_stream))
            .with_state(engine.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine_url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });

        let change = |spec: ServeSpec| ServeSpec { engine: kind, quantization: Quantization::None, ..spec };
        let (played, config) = Played::start_with(&world, change).await;
        let options = BridgeOptions { engine: kind, engine_url, max_lora_rank: 8 };
        let running = tokio::spawn(bridge::serve(config, options));
        let address = played.until(|report| report.address.is_some()).await.address.unwrap();
        Self { world, engine, played, address, running }
    }

    async fn ask(&self, request: &GenerateRequest) -> Vec<GenerateEvent> {
        let client = attune_node::http_client().unwrap();
        let answer = client.post(format!("http://{}/generate", self.address)).bearer_auth("secret").json(request);
        let body = answer.send().await.unwrap().text().await.unwrap();
        body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn adapter(&self, number: u128, change: impl FnOnce(&mut Value)) -> AdapterRef {
        let made = self.world.adapter(number, None).await;
        let folder = self.world.path(&made.id.to_string());
        let path = folder.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        AdapterRef { files: self.world.remote(&folder).await, ..made }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vllm_answers_with_its_tokens_and_loads_adapters_before_their_requests() {
    let bridged = Bridged::start(Engine::Vllm, "hello world").await;
    let answer = bridged.ask(&ask(chat("hi"))).await;
    assert_eq!((said(&answer).as_str(), reason(&answer)), ("hello world", FinishReason::Stop));
    let asked = &bridged.engine.requests("completions")[0];
    assert_eq!(
        (&asked["model"], &asked["temperature"], &asked["cache_salt"]),
        (&json!("base"), &json!(0.0), &json!("p"))
    );
    assert!(asked["prompt"].as_array().unwrap().len() > 2 && asked["stop"].is_null());

    let adapter = bridged.adapter(1, |_| {}).await;
    let id = adapter.id;
    let sampling = Sampling { temperature: 0.0, logprobs: Some(1), max_tokens: Some(2), ..Sampling::default() };
    let request = GenerateRequest { adapter: Some(adapter), sampling, ..ask(text("hi")) };
    let answer = bridged.ask(&request).await;
    let GenerateEvent::Started { adapter, tier, queued_ms, .. } = &answer[0] else { panic!("{answer:?}") };
    assert_eq!((*adapter, *tier), (Some(id), Some(AdapterTier::Store)));
    assert_eq!(*queued_ms, None, "the engine does not report it");
    assert_eq!(reason(&answer), FinishReason::Length);
    assert!(scores(&answer).iter().all(|token| token.logprob == Some(-0.5) && token.top.len() == 1), "{answer:?}");
    let name = json!(id.to_string());
    assert_eq!(bridged.engine.requests("completions")[1]["model"], name);
    bridged.ask(&request).await;
    let loads = bridged.engine.requests("load");
    assert_eq!((loads.len(), &loads[0]["lora_name"]), (1, &name), "loaded once");
    bridged.played.until(|report| report.resident_adapters == [id]).await;

    let stopped = Sampling { stop: vec!["wor".into()], ..request.sampling.clone() };
    let sampling = Sampling { max_tokens: Some(50), logprobs: None, ..stopped };
    let answer = bridged.ask(&GenerateRequest { sampling, ..ask(text("hi")) }).await;
    assert_eq!((said(&answer).trim_end(), reason(&answer)), ("hello", FinishReason::Stop));

    bridged.played.tell(Ok(ReplicaReply::new(Directive::Stop)));
    tokio::time::timeout(Duration::from_secs(20), bridged.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_cannot_do_is_refused_before_it_is_asked() {
    let bridged = Bridged::start(Engine::Vllm, "hello").await;
    let form = GenerateRequest { form: Form::Json, ..ask(text("hi")) };
    let (code, message) = failure(&bridged.ask(&form).await);
    assert_eq!(code, "invalid_request");
    assert!(message.contains("'response_format'") && message.contains("vllm"), "{message}");
    let long = GenerateRequest { prompt: text(&"hello ".repeat(500)), ..ask(text("")) };
    assert_eq!(failure(&bridged.ask(&long).await).0, "context_length_exceeded");

    let dora = bridged.adapter(1, |config| config["use_dora"] = json!(true)).await;
    let large = bridged.adapter(2, |config| config["r"] = json!(16)).await;
    let strange = bridged.adapter(3, |config| config["target_modules"] = json!(["lm_head"])).await;
    for (adapter, why) in [(dora, "DoRA"), (large, "max_lora_rank"), (strange, "target_modules")] {
        let (code, message) =
            failure(&bridged.ask(&GenerateRequest { adapter: Some(adapter), ..ask(text("a")) }).await);
        assert_eq!(code, "adapter_unavailable");
        assert!(message.contains(why), "{message}");
    }
    assert!(bridged.engine.requests("load").is_empty() && bridged.engine.requests("completions").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_adapter_is_loaded_without_a_request() {
    let bridged = Bridged::start(Engine::Vllm, "hello").await;
    let adapter = bridged.adapter(1, |_| {}).await;
    let id = adapter.id;
    bridged.played.pin(adapter);
    bridged.played.until(|report| report.resident_adapters == [id]).await;
    assert_eq!(bridged.engine.requests("load").len(), 1);
}

/// The client of an earlier request may have disconnected while the engine loaded the adapter.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_the_engine_has_already_is_used() {
    let bridged = Bridged::start(Engine::Vllm, "hello").await;
    let adapter = bridged.adapter(1, |_| {}).await;
    bridged.engine.note("load", json!({"lora_name": adapter.id.to_string()}));
    let answer = bridged.ask(&GenerateRequest { adapter: Some(adapter), ..ask(text("a")) }).await;
    assert_eq!(said(&answer), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_adapter_leaves_the_engine_and_the_disk() {
    let bridged = Bridged::start(Engine::Vllm, "hello").await;
    let adapter = bridged.adapter(1, |_| {}).await;
    let id = adapter.id;
    bridged.ask(&GenerateRequest { adapter: Some(adapter), ..ask(text("a")) }).await;
    bridged.played.until(|report| report.resident_adapters == [id]).await;
    bridged.played.until(|report| report.disk_adapters.is_some()).await;
    let folder = bridged.world.path("cache").join("adapter").join(id.to_string());
    assert!(folder.is_dir());
    bridged.played.tell(Ok(ReplicaReply { forget: vec![id], ..ReplicaReply::new(Directive::Continue) }));
    let gone = async {
        while folder.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    assert_eq!(bridged.engine.requests("unload"), [json!({"lora_name": id.to_string()})]);
    bridged.played.clear();
    bridged.played.until(|report| report.resident_adapters.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lorax_gets_the_text_of_the_prompt_and_the_folder_of_the_adapter() {
    let bridged = Bridged::start(Engine::Lorax, "hello").await;
    let adapter = bridged.adapter(1, |_| {}).await;
    let answer = bridged.ask(&GenerateRequest { adapter: Some(adapter), ..ask(text("good day")) }).await;
    assert_eq!((said(&answer).as_str(), reason(&answer)), ("hello", FinishReason::Length));
    let asked = &bridged.engine.requests("generate_stream")[0];
    assert_eq!((&asked["inputs"], &asked["parameters"]["adapter_source"]), (&json!("good day"), &json!("local")));
    let folder = asked["parameters"]["adapter_id"].as_str().unwrap();
    assert!(std::path::Path::new(folder).join("adapter_config.json").is_file(), "{folder}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ends_ends_its_replica_with_the_reason() {
    let bridged = Bridged::start(Engine::Vllm, "hello").await;
    *bridged.engine.is_healthy.lock().unwrap() = false;
    let failed = bridged.played.until(|report| report.failed.is_some()).await.failed.unwrap();
    assert_eq!(failed, "vLLM does not answer any more");
    assert!(bridged.running.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_fetched_and_linked_for_the_engine() {
    let world = World::new().await;
    let (_played, config) = Played::start_with(&world, |spec| spec).await;
    let link = world.path("engine/base");
    bridge::fetch(config, &link).await.unwrap();
    assert!(link.join("config.json").is_file());
}
