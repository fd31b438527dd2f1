//! Chat completions: finds a replica for the model and returns its answer, whole or in chunks.

use std::convert::Infallible;

use attune_domain::{
    access::{Role, Scope},
    id::AdapterVersionId,
    serve::{GenerateEvent, Priority},
};
use attune_inference::{
    chat::{self, BegunChat},
    error::InferenceError,
    generation::Generation,
    requester::Requester,
    wire::{
        chat::NewChat,
        chat_answer::{ChatChunk, ChatCompletion, Heading},
    },
};
use attune_store::tenancy::api_key::Holder;
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, request_context::RequestContext, trace::RequestId},
    policy::Policy,
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] =
    &[Policy::project("create_chat_completion", Scope::Inference, Role::Member).never_stored()];

/// The response header that reports, for a request with `store: true`, that nothing was stored.
pub(super) const STORED: HeaderName = HeaderName::from_static("attune-stored");

/// The response header that reports the adapter version that answers.
const ADAPTER_VERSION: HeaderName = HeaderName::from_static("attune-adapter-version");

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
    let new = NewChat::read(fields)?;
    let (streams, is_to_be_stored) = (new.streams, new.store);
    let tx = app.tenant(holder.project_id).await?;
    let begun = chat::begin(&app.inference, tx, &requester(&holder, &request_id), new).await?;
    let version = begun.adapter_version;
    let mut response = if streams {
        Sse::new(events(begun)).keep_alive(KeepAlive::default()).into_response()
    } else {
        Json(begun.whole().await?).into_response()
    };
    if is_to_be_stored {
        response.headers_mut().insert(STORED, HeaderValue::from_static("false"));
    }
    report_version(&mut response, version);
    Ok(response)
}

/// Returns the caller of a request that is answered at once.
pub(super) fn requester<'a>(holder: &Holder, RequestId(request_id): &'a RequestId) -> Requester<'a> {
    let allowance = RequestContext::current().allowance();
    let (project, api_key_id) = (holder.project_id, holder.api_key_id);
    Requester { project, api_key_id, allowance, request_id, priority: Priority::Live }
}

/// Reports the adapter version that answers in a header of the response.
pub(super) fn report_version(response: &mut Response, version: Option<AdapterVersionId>) {
    if let Some(value) = version.and_then(|version| HeaderValue::try_from(version.to_string()).ok()) {
        response.headers_mut().insert(ADAPTER_VERSION, value);
    }
}

/// Returns the events of the stream. It owns the generation: a client that disconnects drops both, and with them the
/// request to the replica.
fn events(begun: BegunChat) -> impl Stream<Item = Result<Event, Infallible>> {
    let BegunChat { heading, generation, choices, .. } = begun;
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

fn said(heading: &Heading, generation: &Generation, next: Result<GenerateEvent, InferenceError>) -> (Vec<Event>, Last) {
    let chunk = match next {
        Ok(GenerateEvent::Piece { choice, text, tokens }) => heading.piece(choice, text, tokens),
        Ok(GenerateEvent::ToolCallStart { choice, call, id, name }) => heading.called(choice, call, id, name),
        Ok(GenerateEvent::Arguments { choice, call, text }) => heading.arguments(choice, call, text),
        Ok(GenerateEvent::Finished { choice, finish_reason, .. }) => heading.last(choice, finish_reason),
        Ok(GenerateEvent::Done { completion_tokens }) => {
            let usage = heading.usage(generation.usage(completion_tokens));
            let mut last: Vec<Event> = usage.iter().map(data).collect();
            last.push(Event::default().data("[DONE]"));
            return (last, Last(true));
        }
        // A generation returns neither.
        Ok(GenerateEvent::Started { .. } | GenerateEvent::Failed { .. }) => return (Vec::new(), Last(false)),
        Err(error) => {
            error.log();
            return (vec![data(&error.body())], Last(true));
        }
    };
    (vec![data(&chunk)], Last(false))
}

/// Returns an event with `body` as JSON.
pub(super) fn data(body: &impl Serialize) -> Event {
    // Cannot fail: these types have no map keys or numbers that JSON cannot represent.
    Event::default().data(serde_json::to_string(body).unwrap_or_default())
}
