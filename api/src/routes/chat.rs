//! Chat completions: finds a replica for the model and returns its answer, whole or in chunks.

use std::convert::Infallible;

use attune_domain::{
    access::{Role, Scope},
    id::ProjectId,
    serve::{GenerateRequest, Prompt},
};
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use chrono::Utc;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, trace::RequestId},
    inference::{
        generation::{self, Generation, Next},
        resolve::{self, AskedModel},
    },
    policy::Policy,
    wire::inference::{
        chat::NewChat,
        chat_answer::{ChatChunk, ChatCompletion, Heading},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[Policy::project("create_chat_completion", Scope::Inference, Role::Member)];

/// The response header that reports, for a request with `store: true`, that nothing was stored.
const STORED: HeaderName = HeaderName::from_static("attune-stored");

/// Create a chat completion.
///
/// The model is a base model or one of the project's fine-tuned models. The first request starts a serving process and
/// waits for it. With `stream`, the answer is sent as server-sent events, each with a `chat.completion.chunk`, followed
/// by `[DONE]`; if the answer cannot be completed, the last event has an error instead. Nothing is stored: the response
/// to `store: true` has the header `attune-stored: false`.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "Chat", operation_id = "create_chat_completion",
    request_body = NewChat,
    responses(
        (status = 200, content((ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody, description = "No serving process is ready yet. Retry after `Retry-After`."),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Extension(request_id): Extension<RequestId>,
    Body(fields): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let chat = NewChat::read(fields)?;
    let model = resolve::find(&app, holder.project_id, &chat.model).await?;
    let mut generation = begin(&app, &chat, &model, &request_id.0).await?;
    generation.charge(&app.meter, model.account(holder.project_id, holder.api_key_id));
    let heading = heading(&chat, model);
    let mut response = if chat.streams() {
        let events = events(heading, generation, chat.choices());
        Sse::new(events).keep_alive(KeepAlive::default()).into_response()
    } else {
        Json(whole(heading, generation, chat.choices()).await?).into_response()
    };
    if chat.store == Some(true) {
        response.headers_mut().insert(STORED, HeaderValue::from_static("false"));
    }
    Ok(response)
}

/// Creates a chat completion without streaming, for callers inside the API, such as batches.
///
/// # Errors
/// As for [`create`].
pub async fn complete(
    app: &App,
    project: ProjectId,
    request_id: &str,
    fields: Map<String, Value>,
) -> Result<ChatCompletion, ApiError> {
    let chat = NewChat::read(fields)?;
    if chat.streams() {
        return Err(ApiError::unsupported("stream", "A batch's requests cannot be streamed. Omit 'stream'."));
    }
    let model = resolve::find(app, project, &chat.model).await?;
    let mut generation = begin(app, &chat, &model, request_id).await?;
    generation.charge(&app.meter, model.account(project, None));
    whole(heading(&chat, model), generation, chat.choices()).await
}

async fn begin(app: &App, chat: &NewChat, model: &AskedModel, request_id: &str) -> Result<Generation, ApiError> {
    let request = GenerateRequest {
        request_id: request_id.to_owned(),
        project: model.project_id.to_string(),
        adapter: model.adapter.clone(),
        prompt: Prompt::Chat { messages: chat.chat_messages()?, template_kwargs: chat.template_kwargs()? },
        echo: false,
        form: chat.form()?,
        tools: chat.tools()?,
        choices: chat.choices(),
        sampling: chat.sampling(rand::random())?,
    };
    generation::begin(app, model, &request).await
}

fn heading(chat: &NewChat, model: AskedModel) -> Heading {
    Heading {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: Utc::now().timestamp(),
        model: model.name,
        system_fingerprint: model.system_fingerprint,
        with_logprobs: chat.logprobs == Some(true),
        with_usage: chat.streams_usage(),
    }
}

async fn whole(heading: Heading, mut generation: Generation, choices: u32) -> Result<ChatCompletion, ApiError> {
    let (answers, completion_tokens) = generation.whole(choices, 1).await?;
    Ok(heading.whole(answers, generation.usage(completion_tokens)))
}

/// Returns the events of the stream. It owns the generation: a client that disconnects drops both, and with them the
/// request to the replica.
fn events(heading: Heading, generation: Generation, choices: u32) -> impl Stream<Item = Result<Event, Infallible>> {
    let first: Vec<Event> = (0..choices).map(|choice| data(&heading.first(choice))).collect();
    let rest = stream::unfold(Some((heading, generation)), |state| async move {
        let (heading, mut generation) = state?;
        let next = generation.next().await;
        let (events, Last(last)) = said(&heading, &generation, next);
        Some((events, (!last).then_some((heading, generation))))
    });
    stream::iter(first).chain(rest.flat_map(stream::iter)).map(Ok)
}

/// `true` if no event follows.
pub(super) struct Last(pub(super) bool);

fn said(heading: &Heading, generation: &Generation, next: Result<Next, ApiError>) -> (Vec<Event>, Last) {
    match next {
        Ok(Next::Piece { choice, text, tokens }) => (vec![data(&heading.piece(choice, text, tokens))], Last(false)),
        Ok(Next::ToolCallStart { choice, call, id, name }) => {
            (vec![data(&heading.called(choice, call, id, name))], Last(false))
        }
        Ok(Next::Arguments { choice, call, text }) => (vec![data(&heading.arguments(choice, call, text))], Last(false)),
        Ok(Next::Finished { choice, finish_reason }) => (vec![data(&heading.last(choice, finish_reason))], Last(false)),
        Ok(Next::Done { completion_tokens }) => {
            let usage = heading.usage(generation.usage(completion_tokens));
            let mut last: Vec<Event> = usage.iter().map(data).collect();
            last.push(Event::default().data("[DONE]"));
            (last, Last(true))
        }
        Err(error) => {
            error.log();
            (vec![data(&error.body())], Last(true))
        }
    }
}

/// Returns an event with `body` as JSON.
pub(super) fn data(body: &impl Serialize) -> Event {
    // Cannot fail: these types have no map keys or numbers that JSON cannot represent.
    Event::default().data(serde_json::to_string(body).unwrap_or_default())
}
