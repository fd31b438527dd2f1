//! The HTTP server: authentication, requests and events.

use std::sync::{Arc, atomic::Ordering};

use attune_domain::{
    bytes::Bytes,
    serve::{
        AdapterRef, AdapterTier, ChatMessage, FinishReason, Form, GenerateEvent, GenerateRequest, Priority, Prompt,
        Sampling, TokenLogprob, Tool, ToolChoice, Tools,
    },
    template_kwargs::TemplateKwargs,
};
use attune_serving::{app::App, http::router};
use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use futures::StreamExt;
use serde_json::json;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::world::World;

pub(crate) fn app(world: &World) -> Arc<App> {
    Arc::new(App {
        token: "secret".into(),
        adapters: world.adapters(Bytes::mib(64)),
        engine: world.engine(8, 8192),
        admission: Arc::default(),
        requests: TaskTracker::new(),
        active: 0.into(),
    })
}

pub(crate) fn ask(prompt: Prompt) -> GenerateRequest {
    let sampling = Sampling { temperature: 0.0, seed: 1, max_tokens: Some(20), ..Sampling::default() };
    let (request_id, project) = ("test".into(), "p".into());
    let (adapter, keep, form, tools) = (None, None, Form::Free, None);
    let (priority, truncate, echo, choices) = (Priority::Live, None, false, 1);
    GenerateRequest {
        request_id,
        project,
        priority,
        adapter,
        keep,
        prompt,
        truncate,
        echo,
        form,
        tools,
        choices,
        sampling,
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: Some(content.into()), name: None, tool_calls: None, tool_call_id: None }
}

pub(crate) fn chat(text: &str) -> Prompt {
    Prompt::Chat { messages: vec![message("user", text)], template_kwargs: TemplateKwargs::default() }
}

pub(crate) fn text(text: &str) -> Prompt {
    Prompt::Text { text: text.into() }
}

fn post(token: &str, request: &GenerateRequest) -> Request<Body> {
    Request::post("/generate")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(request).unwrap().into())
        .unwrap()
}

pub(crate) async fn events(app: &Arc<App>, request: &GenerateRequest) -> Vec<GenerateEvent> {
    let answer = router(app.clone()).oneshot(post("secret", request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    body.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Returns the text of the answer `wanted`.
fn said_by(events: &[GenerateEvent], wanted: u32) -> String {
    let text = |event: &GenerateEvent| match event {
        GenerateEvent::Piece { choice, text, .. } if *choice == wanted => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

pub(crate) fn said(events: &[GenerateEvent]) -> String {
    said_by(events, 0)
}

pub(crate) fn scores(events: &[GenerateEvent]) -> Vec<TokenLogprob> {
    let tokens = |event: &GenerateEvent| match event {
        GenerateEvent::Piece { tokens, .. } => tokens.clone(),
        _ => Vec::new(),
    };
    events.iter().flat_map(tokens).collect()
}

pub(crate) fn reason(events: &[GenerateEvent]) -> FinishReason {
    let reason = |event: &GenerateEvent| match event {
        GenerateEvent::Finished { finish_reason, .. } => Some(*finish_reason),
        _ => None,
    };
    events.iter().find_map(reason).unwrap()
}

pub(crate) fn failure(events: &[GenerateEvent]) -> (String, String) {
    match events {
        [GenerateEvent::Failed { code, message, .. }] => (code.clone(), message.clone()),
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
    let GenerateEvent::Started { prompt_tokens, cached_tokens: 0, echo: None, adapter: None, tier: None, .. } =
        &events[0]
    else {
        panic!("{:?}", events[0])
    };
    assert_eq!(*prompt_tokens, 1 + 5 + 5 + 1 + 1 + 1 + 10);
    match (reason(&events), events.last()) {
        (FinishReason::Length, Some(GenerateEvent::Done { completion_tokens: 20 })) => {}
        (FinishReason::Stop, Some(GenerateEvent::Done { completion_tokens: 1..20 })) => {}
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
    assert_eq!(reason(&events), FinishReason::Stop);
}

#[tokio::test]
async fn several_answers_are_the_first_one_and_others_each_the_same_every_time() {
    let world = World::new().await;
    let app = app(&world);
    let mut one = ask(text("tell me"));
    one.sampling.temperature = 1.0;
    let three = GenerateRequest { choices: 3, ..one.clone() };
    let (alone, first, again) = (events(&app, &one).await, events(&app, &three).await, events(&app, &three).await);
    let texts = |events: &[GenerateEvent]| [0, 1, 2].map(|choice| said_by(events, choice));
    assert_eq!(texts(&first), texts(&again));
    assert_eq!(texts(&first)[0], said(&alone));
    assert!(texts(&first)[0] != texts(&first)[1] && texts(&first)[1] != texts(&first)[2], "{first:?}");
}

#[tokio::test]
async fn scored_tokens_are_the_text_that_is_sent_and_no_more() {
    let world = World::new().await;
    let app = app(&world);
    let mut request = ask(text("tell me"));
    request.sampling.logprobs = Some(3);
    let whole = events(&app, &request).await;
    let bytes = |events: &[GenerateEvent]| scores(events).into_iter().flat_map(|token| token.bytes).collect::<Vec<_>>();
    assert_eq!(String::from_utf8_lossy(&bytes(&whole)), said(&whole));
    for token in scores(&whole) {
        // At temperature 0 the sampled token is the most likely one.
        assert_eq!((token.top.len(), token.logprob), (3, Some(token.top[0].logprob)));
    }
    let full = said(&whole);
    let letters: Vec<(usize, char)> = full.char_indices().collect();
    request.sampling.stop = vec![full[letters[letters.len() / 2].0..letters[letters.len() / 2 + 2].0].to_owned()];
    let cut = events(&app, &request).await;
    assert_eq!(String::from_utf8_lossy(&bytes(&cut)), said(&cut));
}

#[tokio::test]
async fn an_echo_is_the_prompt_with_its_scores() {
    let world = World::new().await;
    let app = app(&world);
    let mut request = GenerateRequest { echo: true, ..ask(text("tell me")) };
    request.sampling.max_tokens = Some(0);
    request.sampling.logprobs = Some(0);
    let said_again = |events: &[GenerateEvent]| match &events[0] {
        GenerateEvent::Started { prompt_tokens: 7, echo: Some(echo), .. } => echo.clone(),
        other => panic!("{other:?}"),
    };
    let told = events(&app, &request).await;
    let echo = said_again(&told);
    assert_eq!((echo.text.as_str(), echo.tokens.len()), ("tell me", 7));
    assert!(echo.tokens[0].logprob.is_none() && echo.tokens[1..].iter().all(|token| token.logprob < Some(0.0)));
    assert_eq!(told.last(), Some(&GenerateEvent::Done { completion_tokens: 0 }));
    // The tiny tokenizer's ID of a byte is the byte.
    let ids = GenerateRequest { prompt: Prompt::Tokens { ids: b"tell me".map(u32::from).to_vec() }, ..request };
    assert_eq!(said_again(&events(&app, &ids).await), echo);
}

#[tokio::test]
async fn ids_that_the_model_does_not_know_are_refused_by_the_field() {
    let world = World::new().await;
    let app = app(&world);
    let mut biased = ask(text("a"));
    biased.sampling.logit_bias = [(272, 1.0)].into();
    for (request, want) in [(biased, "logit_bias"), (ask(Prompt::Tokens { ids: vec![1, 272] }), "prompt")] {
        match events(&app, &request).await.as_slice() {
            [GenerateEvent::Failed { code, param, .. }] => {
                assert_eq!((code.as_str(), param.as_deref()), ("invalid_request", Some(want)));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Returns a schema that matches only short texts, so that no answer is truncated.
fn person() -> serde_json::Value {
    json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "role": {"enum": ["admin", "guest"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    }, "required": ["name", "age", "role", "tags"], "additionalProperties": false})
}

fn check_person(text: &str) {
    let person: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert_eq!(person.as_object().unwrap().keys().collect::<Vec<_>>(), ["name", "age", "role", "tags"], "{text}");
    assert!(person["name"].as_str().unwrap().chars().count() <= 8, "{text}");
    assert!(person["age"].as_u64().unwrap() <= 150, "{text}");
    assert!(["admin", "guest"].contains(&person["role"].as_str().unwrap()), "{text}");
    assert!(person["tags"].as_array().unwrap().iter().all(serde_json::Value::is_boolean), "{text}");
}

/// A model with random weights generates arbitrary text; the higher the temperature, the less likely JSON is.
#[tokio::test]
async fn an_answer_of_a_schema_is_of_it_however_random_the_model_is() {
    let world = World::new().await;
    let app = app(&world);
    for seed in 0..6 {
        let mut request = GenerateRequest { choices: 3, ..ask(chat("who?")) };
        request.form = Form::Schema { schema: person(), strict: true };
        request.sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        let events = events(&app, &request).await;
        assert_eq!(reason(&events), FinishReason::Stop, "{events:?}");
        (0..3).for_each(|choice| check_person(&said_by(&events, choice)));
    }
}

#[tokio::test]
async fn an_answer_in_json_is_an_object() {
    let world = World::new().await;
    let app = app(&world);
    let mut whole = 0;
    for seed in 0..8 {
        let mut request = ask(chat("who?"));
        request.form = Form::Json;
        request.sampling = Sampling { temperature: 1.5, seed, max_tokens: Some(300), ..Sampling::default() };
        let events = events(&app, &request).await;
        let text = said(&events);
        assert!(text.starts_with('{'), "{text}");
        if reason(&events) == FinishReason::Stop {
            whole += 1;
            assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap().is_object(), "{text}");
        }
    }
    assert!(whole > 0, "no answer ended by itself");
}

#[tokio::test]
async fn what_cannot_be_enforced_is_refused_with_a_reason() {
    let world = World::new().await;
    let app = app(&world);
    let mut request = ask(chat("who?"));
    let schema = json!({"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "required": ["a"]});
    request.form = Form::Schema { schema, strict: true };
    match events(&app, &request).await.as_slice() {
        [GenerateEvent::Failed { code, param, message }] => {
            assert_eq!((code.as_str(), param.as_deref()), ("invalid_request", Some("response_format")), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn tools(choice: ToolChoice, parallel: bool) -> Tools {
    let tool = |name: &str| Tool { name: name.into(), parameters: Some(person()), strict: true };
    let shown = json!([{"type": "function", "function": {"name": "add", "parameters": person()}}]);
    Tools { shown, definitions: vec![tool("add"), tool("remove")], choice, parallel }
}

/// Returns the calls: names with their complete arguments.
pub(crate) fn calls(events: &[GenerateEvent]) -> Vec<(String, String)> {
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in events {
        match event {
            GenerateEvent::ToolCallStart { name, call, .. } => {
                assert_eq!(*call as usize, calls.len());
                calls.push((name.clone(), String::new()));
            }
            GenerateEvent::Arguments { call, text, .. } => calls[*call as usize].1.push_str(text),
            _ => {}
        }
    }
    calls
}

#[tokio::test]
async fn a_call_that_must_come_comes_with_arguments_of_its_schema() {
    let world = World::new().await;
    let app = app(&world);
    let adapter = world.adapter(1, Some(attune_tests::tiny::TOOLS_TEMPLATE)).await;
    for seed in 0..4 {
        for (choice, parallel) in [
            (ToolChoice::Required, true),
            (ToolChoice::Required, false),
            (ToolChoice::Named { name: "remove".into() }, false),
        ] {
            let mut request = GenerateRequest { adapter: Some(adapter.clone()), ..ask(chat("do it")) };
            request.sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
            request.tools = Some(tools(choice.clone(), parallel));
            let events = events(&app, &request).await;
            let called = calls(&events);
            assert_eq!(said(&events), "");
            assert!(!called.is_empty() && (parallel || called.len() == 1), "{events:?}");
            called.iter().for_each(|(_, arguments)| check_person(arguments));
            assert!(called.iter().all(|(name, _)| choice.admits(name)), "{called:?}");
            assert_eq!(reason(&events), FinishReason::ToolCalls);
        }
    }
}

/// If the template does not support tools, the system message lists them, and the grammar of calls is still enforced.
#[tokio::test]
async fn a_template_without_tools_is_given_them_in_the_generic_form() {
    let world = World::new().await;
    let app = app(&world);
    let plain = prompt_tokens(&events(&app, &ask(chat("do it"))).await);
    for (seed, choice) in [(0, ToolChoice::Required), (1, ToolChoice::Named { name: "remove".into() })] {
        let mut request = GenerateRequest { tools: Some(tools(choice.clone(), true)), ..ask(chat("do it")) };
        request.sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        let told = events(&app, &request).await;
        let called = calls(&told);
        assert_eq!((said(&told).as_str(), called.len()), ("", 1), "{told:?}");
        check_person(&called[0].1);
        assert!(choice.admits(&called[0].0) && prompt_tokens(&told) > plain + 200);
    }
    // Tools that must not be called are omitted from the prompt.
    let none = GenerateRequest { tools: Some(tools(ToolChoice::None, true)), ..ask(chat("do it")) };
    assert_eq!(prompt_tokens(&events(&app, &none).await), plain);
    // Calls and their results are rendered as text.
    let call = json!([{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]);
    let called = ChatMessage { tool_calls: Some(call), ..message("assistant", "") };
    let result = ChatMessage { tool_call_id: Some("1".into()), ..message("tool", "done") };
    let with = |messages| ask(Prompt::Chat { messages, template_kwargs: TemplateKwargs::default() });
    let form = with(vec![message("user", "do it"), called, result]);
    let text = with(vec![
        message("user", "do it"),
        message("assistant", r#"{"name": "add", "arguments": {"a":1}}"#),
        message("user", "Result of add: done"),
    ]);
    assert_eq!(events(&app, &form).await, events(&app, &text).await);
}

pub(crate) fn prompt_tokens(events: &[GenerateEvent]) -> u64 {
    match &events[0] {
        GenerateEvent::Started { prompt_tokens, .. } => *prompt_tokens,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_missing_adapter_is_a_failure_and_not_the_base_s_answer() {
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
async fn what_cannot_be_a_prompt_is_reported() {
    let world = World::new().await;
    let app = app(&world);
    for prompt in [text(""), chat("<|im_end|>")] {
        assert_eq!(failure(&events(&app, &ask(prompt)).await).0, "invalid_prompt");
    }
    let (code, message) = failure(&events(&app, &ask(text(&"long ".repeat(300)))).await);
    assert_eq!(code, "context_length_exceeded");
    assert_eq!(
        message,
        "the prompt has 1500 tokens, and this model and its memory hold at most 1024, the answer included"
    );
}

#[tokio::test]
async fn an_adapter_s_own_chat_template_is_used() {
    let world = World::new().await;
    let template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ bos_token }}";
    let own: AdapterRef = world.adapter(1, Some(template)).await;
    let (app, request) = (app(&world), GenerateRequest { adapter: Some(own.clone()), ..ask(chat("four")) });
    for found in [AdapterTier::Store, AdapterTier::Memory] {
        match &events(&app, &request).await[0] {
            GenerateEvent::Started { prompt_tokens: 5, adapter, tier, .. } => {
                assert_eq!((*adapter, *tier), (Some(own.id), Some(found)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn variables_of_the_caller_reach_the_chat_template() {
    let world = World::new().await;
    let template =
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %}{{ '....' }}{% endif %}";
    let own: AdapterRef = world.adapter(1, Some(template)).await;
    let app = app(&world);
    for (kwargs, want) in
        [(json!({}), 4), (json!({"enable_thinking": true}), 4), (json!({"enable_thinking": false}), 8)]
    {
        let template_kwargs = TemplateKwargs::check(kwargs.as_object().unwrap()).unwrap();
        let prompt = Prompt::Chat { messages: vec![message("user", "four")], template_kwargs };
        let request = GenerateRequest { adapter: Some(own.clone()), ..ask(prompt) };
        assert_eq!(prompt_tokens(&events(&app, &request).await), want, "{kwargs}");
    }
    let steering = json!({"enable_thinking": "<|im_end|>"});
    let template_kwargs = TemplateKwargs::check(steering.as_object().unwrap()).unwrap();
    let prompt = Prompt::Chat { messages: vec![message("user", "four")], template_kwargs };
    assert_eq!(failure(&events(&app, &ask(prompt)).await).0, "invalid_prompt");
}

/// A client that disconnects cancels its request.
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
