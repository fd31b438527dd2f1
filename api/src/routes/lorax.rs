//! LoRAX's endpoints, below the path of a model: `lorax-client` is created with the address `…/lorax/{model}`.
//!
//! Errors have LoRAX's shape, except for those that occur before a handler: a missing key, a missing permission, a rate
//! limit.

use std::convert::Infallible;

use attune_domain::access::{Role, Scope};
use attune_inference::{
    lorax::{self, BegunGeneration, NextChunks},
    wire::lorax::{
        request::{LoraxRequest, NewGeneration},
        response::{LoraxChunk, LoraxError, LoraxRefusal, LoraxResponse},
    },
};
use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, stream};
use serde_json::{Map, Value};

use super::chat::{data, report_version, requester};
use crate::{
    app::App,
    auth::caller::Caller,
    error::ApiError,
    http::{json_body::Body, trace::RequestId},
    policy::Policy,
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("lorax", Scope::Inference, Role::Member).never_stored(),
    Policy::project("lorax_generate", Scope::Inference, Role::Member).never_stored(),
    Policy::project("lorax_generate_stream", Scope::Inference, Role::Member).never_stored(),
];

/// The parts of a request that all endpoints of this file read.
type Asked = (State<App>, Path<String>, Caller, Extension<RequestId>);

/// A request's body, or the error that it cannot be read.
type Fields = Result<Body<Map<String, Value>>, ApiError>;

/// The form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// A list of one object, or a stream if the body has `stream: true`.
    ListOrStream,
    /// An object.
    Whole,
    /// A stream.
    Stream,
}

/// Generate a text, whole or streamed.
///
/// The path is the address of `lorax-client`. Without `stream`, the response is a list of one object, as LoRAX's. The
/// model in the path answers requests without `adapter_id`. No chat template is applied.
#[utoipa::path(post, path = "/lorax/{model}", tag = "LoRAX", operation_id = "lorax",
    request_body = NewGeneration,
    params(("model" = String, Path, description = "The name of a base model or of a fine-tuned model.")),
    responses(
        (status = 200, content((Vec<LoraxResponse> = "application/json"), (LoraxChunk = "text/event-stream"))),
        (status = "4XX", body = LoraxRefusal),
        (status = 503, body = LoraxRefusal, description = "No serving process is ready. Retry after `Retry-After`."),
    ))]
pub async fn compatible(asked: Asked, fields: Fields) -> Response {
    answer(asked, fields, Answers::ListOrStream).await.unwrap_or_else(refused)
}

/// Generate a text.
///
/// The model in the path answers requests without `adapter_id`. No chat template is applied.
#[utoipa::path(post, path = "/lorax/{model}/generate", tag = "LoRAX", operation_id = "lorax_generate",
    request_body = NewGeneration,
    params(("model" = String, Path, description = "The name of a base model or of a fine-tuned model.")),
    responses(
        (status = 200, body = LoraxResponse),
        (status = "4XX", body = LoraxRefusal),
        (status = 503, body = LoraxRefusal, description = "No serving process is ready. Retry after `Retry-After`."),
    ))]
pub async fn generate(asked: Asked, fields: Fields) -> Response {
    answer(asked, fields, Answers::Whole).await.unwrap_or_else(refused)
}

/// Generate a text as a stream.
///
/// Each token is a server-sent event; the last one has the whole text. If the text cannot be completed, the last event
/// has an error instead.
#[utoipa::path(post, path = "/lorax/{model}/generate_stream", tag = "LoRAX", operation_id = "lorax_generate_stream",
    request_body = NewGeneration,
    params(("model" = String, Path, description = "The name of a base model or of a fine-tuned model.")),
    responses(
        (status = 200, body = LoraxChunk, content_type = "text/event-stream"),
        (status = "4XX", body = LoraxRefusal),
        (status = 503, body = LoraxRefusal, description = "No serving process is ready. Retry after `Retry-After`."),
    ))]
pub async fn generate_stream(asked: Asked, fields: Fields) -> Response {
    answer(asked, fields, Answers::Stream).await.unwrap_or_else(refused)
}

async fn answer(asked: Asked, fields: Fields, answers: Answers) -> Result<Response, ApiError> {
    let (State(app), Path(server_model), Caller(holder), Extension(request_id)) = asked;
    let Body(mut fields) = fields?;
    if answers == Answers::Stream {
        fields.insert("stream".into(), true.into());
    }
    let new: LoraxRequest = NewGeneration::read(fields, &server_model)?;
    let streams = new.streams;
    if streams && answers == Answers::Whole {
        let message = "Unsupported 'stream': this path does not stream; use '/lorax/{model}/generate_stream'.";
        return Err(ApiError::unsupported("stream", message));
    }
    let tx = app.tenant(holder.project_id).await?;
    let begun = lorax::begin(&app.inference, tx, &requester(&holder, &request_id), &server_model, new).await?;
    let version = begun.adapter_version;
    let mut response = if streams {
        Sse::new(events(begun)).keep_alive(KeepAlive::default()).into_response()
    } else {
        let whole = begun.whole().await?;
        if answers == Answers::Whole { Json(whole).into_response() } else { Json([whole]).into_response() }
    };
    report_version(&mut response, version);
    Ok(response)
}

/// Returns the events of the stream. It owns the generation: a client that disconnects drops both, and with them the
/// request to the replica.
fn events(begun: BegunGeneration) -> impl Stream<Item = Result<Event, Infallible>> {
    let all = stream::unfold(Some(begun), |begun| async move {
        let mut begun = begun?;
        match begun.next().await {
            Ok(NextChunks { chunks, is_last }) => {
                let events: Vec<Event> = chunks.iter().map(data).collect();
                Some((events, (!is_last).then_some(begun)))
            }
            Err(error) => {
                error.log();
                Some((vec![data(&LoraxError::new(error.to_string(), error.status()))], None))
            }
        }
    });
    all.flat_map(stream::iter).map(Ok)
}

/// Returns the response to a request that failed: status, headers and message of the error, in LoRAX's shape. An
/// invalid request has LoRAX's status 422.
fn refused(error: ApiError) -> Response {
    let body = LoraxError::new(error.body().error.message, error.status());
    let (mut parts, _) = error.into_response().into_parts();
    if parts.status == StatusCode::BAD_REQUEST {
        parts.status = StatusCode::UNPROCESSABLE_ENTITY;
    }
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    (parts.status, parts.headers, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_error_has_lorax_s_shape_and_keeps_its_headers() {
        let invalid = refused(ApiError::invalid("inputs", "Invalid 'inputs': the prompt is empty."));
        assert_eq!(invalid.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(invalid.headers()[header::CONTENT_TYPE], "application/json");
        let body = to_bytes(invalid.into_body(), 1 << 10).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, json!({"error": "Invalid 'inputs': the prompt is empty.", "error_type": "validation"}));
        let busy = refused(ApiError::Busy { message: "Full.".into(), retry_after_seconds: 7 });
        assert_eq!(
            (busy.status(), &busy.headers()[header::RETRY_AFTER]),
            (StatusCode::SERVICE_UNAVAILABLE, &"7".parse().unwrap())
        );
    }
}
