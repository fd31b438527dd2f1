//! The door: who comes in, and what is said to them.

use std::sync::{Arc, atomic::Ordering};

use attune_domain::{
    bytes::Bytes,
    serve::{AdapterRef, ChatMessage, FinishReason, GenerateEvent, GenerateRequest, Prompt, Sampling},
};
use attune_serving::http::{App, router};
use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use futures::StreamExt;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::world::World;

fn app(world: &World) -> Arc<App> {
    Arc::new(App {
        token: "secret".into(),
        adapters: world.adapters(Bytes::mib(64)),
        engine: world.engine(8, 8192),
        requests: TaskTracker::new(),
        active: 0.into(),
    })
}

fn ask(prompt: Prompt) -> GenerateRequest {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 1, stop: Vec::new(), max_tokens: Some(20) };
    GenerateRequest { request_id: "test".into(), adapter: None, prompt, sampling }
}

fn chat(text: &str) -> Prompt {
    Prompt::Chat { messages: vec![ChatMessage { role: "user".into(), content: text.into() }] }
}

fn text(text: &str) -> Prompt {
    Prompt::Text { text: text.into() }
}

fn post(token: &str, request: &GenerateRequest) -> Request<Body> {
    Request::post("/generate")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(request).unwrap().into())
        .unwrap()
}

async fn events(app: &Arc<App>, request: &GenerateRequest) -> Vec<GenerateEvent> {
    let answer = router(app.clone()).oneshot(post("secret", request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    body.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn said(events: &[GenerateEvent]) -> String {
    events
        .iter()
        .filter_map(|e| if let GenerateEvent::Piece { text } = e { Some(text.as_str()) } else { None })
        .collect()
}

fn failure(events: &[GenerateEvent]) -> (String, String) {
    match events {
        [GenerateEvent::Failed { code, message }] => (code.clone(), message.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_the_platform_comes_in() {
    let world = World::new().await;
    let app = app(&world);
    for token in ["", "secre", "secrets", "Secret"] {
        let answer = router(app.clone()).oneshot(post(token, &ask(text("a")))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{token}");
    }
    let health = Request::get("/healthz").body(Body::empty()).unwrap();
    assert_eq!(router(app).oneshot(health).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_answer_starts_has_pieces_and_ends() {
    let world = World::new().await;
    let events = events(&app(&world), &ask(chat("hello"))).await;
    // <|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n
    assert_eq!(events[0], GenerateEvent::Started { prompt_tokens: 1 + 5 + 5 + 1 + 1 + 1 + 10 });
    match events.last() {
        Some(GenerateEvent::Finished { finish_reason: FinishReason::Length, completion_tokens: 20 }) => {}
        Some(GenerateEvent::Finished { finish_reason: FinishReason::Stop, completion_tokens: 1..20 }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_itself() {
    let world = World::new().await;
    let app = app(&world);
    let whole = ask(text("tell me"));
    let full = said(&events(&app, &whole).await);
    let letters: Vec<(usize, char)> = full.char_indices().collect();
    let (from, to) = (letters[letters.len() / 2].0, letters[letters.len() / 2 + 2].0);
    let stop = full[from..to].to_owned();
    let mut cut = whole.clone();
    cut.sampling.stop = vec![stop.clone()];
    let events = events(&app, &cut).await;
    assert_eq!(said(&events), full[..full.find(&stop).unwrap()]);
    assert!(matches!(events.last(), Some(GenerateEvent::Finished { finish_reason: FinishReason::Stop, .. })));
}

#[tokio::test]
async fn an_adapter_that_is_not_there_is_a_failure_and_not_the_base_s_answer() {
    let world = World::new().await;
    let mut adapter = world.adapter(1, None).await;
    for file in &mut adapter.files {
        file.url += ".gone";
    }
    let events = events(&app(&world), &GenerateRequest { adapter: Some(adapter), ..ask(text("a")) }).await;
    let (code, message) = failure(&events);
    assert_eq!(code, "adapter_unavailable");
    assert!(message.contains("404"), "{message}");
}

#[tokio::test]
async fn what_cannot_be_a_prompt_is_said() {
    let world = World::new().await;
    let app = app(&world);
    for prompt in [text(""), chat("<|im_end|>")] {
        assert_eq!(failure(&events(&app, &ask(prompt)).await).0, "invalid_prompt");
    }
    let (code, message) = failure(&events(&app, &ask(text(&"long ".repeat(300)))).await);
    assert_eq!(code, "context_length_exceeded");
    assert_eq!(
        message,
        "the prompt has 1500 tokens, and 1024 is the most that this model and its memory hold, the answer included"
    );
}

#[tokio::test]
async fn an_adapter_s_own_chat_template_is_used() {
    let world = World::new().await;
    let template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ bos_token }}";
    let own: AdapterRef = world.adapter(1, Some(template)).await;
    let events = events(&app(&world), &GenerateRequest { adapter: Some(own), ..ask(chat("four")) }).await;
    assert_eq!(events[0], GenerateEvent::Started { prompt_tokens: 5 });
}

#[tokio::test]
async fn a_client_that_goes_ends_its_request() {
    let world = World::new().await;
    let app = app(&world);
    let mut endless = ask(text("go on"));
    endless.sampling.max_tokens = None;
    let answer = router(app.clone()).oneshot(post("secret", &endless)).await.unwrap();
    let mut body = answer.into_body().into_data_stream();
    assert!(body.next().await.unwrap().is_ok());
    drop(body);
    app.requests.close();
    tokio::time::timeout(std::time::Duration::from_secs(20), app.requests.wait()).await.unwrap();
    assert_eq!(app.active.load(Ordering::SeqCst), 0);
}
