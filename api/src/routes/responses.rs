//! Responses of OpenAI's Responses API, whole or as events. No response is stored.

use std::convert::Infallible;

use attune_domain::access::{Role, Scope};
use attune_inference::{
    responses::{self, BegunResponse, NextEvents},
    wire::responses::{request::NewResponse, response::ModelResponse, stream::ResponseEvent},
};
use axum::{
    Extension, Json,
    extract::State,
    http::HeaderValue,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, stream};
use serde_json::{Map, Value};

use super::chat::{STORED, report_version, requester};
use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, trace::RequestId},
    policy::Policy,
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] =
    &[Policy::project("create_response", Scope::Inference, Role::Member).never_stored()];

/// Create a response.
///
/// The model, its serving process and its answer are as in a chat completion; the request is translated to one. Nothing
/// is stored, so the input holds the whole conversation. With `stream`, the response is sent as server-sent events that
/// have the type as their name; the last one is `response.completed`, `response.incomplete` or `response.failed`.
#[utoipa::path(post, path = "/v1/responses", tag = "Chat", operation_id = "create_response",
    request_body = NewResponse,
    responses(
        (status = 200, content((ModelResponse = "application/json"), (ResponseEvent = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody, description = "No serving process is ready yet. Retry after `Retry-After`."),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Extension(request_id): Extension<RequestId>,
    Body(fields): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let new = NewResponse::read(fields)?;
    let (streams, is_to_be_stored) = (new.chat.streams, new.chat.store);
    let tx = app.tenant(holder.project_id).await?;
    let begun = responses::begin(&app.inference, tx, &requester(&holder, &request_id), new).await?;
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

/// Returns the events of the stream. It owns the generation: a client that disconnects drops both, and with them the
/// request to the replica.
fn events(mut begun: BegunResponse) -> impl Stream<Item = Result<Event, Infallible>> {
    let first = begun.first();
    let rest = stream::unfold(Some(begun), |begun| async move {
        let mut begun = begun?;
        let NextEvents { events, is_last } = begun.next().await;
        Some((events, (!is_last).then_some(begun)))
    });
    stream::iter(first).chain(rest.flat_map(stream::iter)).map(|event| Ok(named(&event)))
}

/// Returns a server-sent event whose name is the type of `event`.
fn named(event: &ResponseEvent) -> Event {
    // Cannot fail: these types have no map keys or numbers that JSON cannot represent.
    let body = serde_json::to_value(event).unwrap_or_default();
    let name = body["type"].as_str().unwrap_or_default();
    Event::default().event(name).data(body.to_string())
}
