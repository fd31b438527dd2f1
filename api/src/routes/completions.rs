//! Text completions: one request to a replica for each prompt, one response for all.

use std::convert::Infallible;

use attune_domain::{
    access::{Role, Scope},
    serve::GenerateEvent,
};
use attune_inference::{
    completion::{self, BegunCompletion},
    error::InferenceError,
    generation::Generation,
    wire::{
        chat_answer::Usage,
        completion::NewCompletion,
        completion_answer::{Completion, CompletionHeading},
    },
};
use axum::{
    Extension, Json,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use serde_json::{Map, Value};

use super::chat::{Last, data, report_version, requester};
use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, trace::RequestId},
    policy::Policy,
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] =
    &[Policy::project("create_completion", Scope::Inference, Role::Member).never_stored()];

/// Create a text completion.
///
/// No chat template is applied. With `stream`, the answers are sent as server-sent events, followed by `[DONE]`; if an
/// answer cannot be completed, the last event has an error instead.
#[utoipa::path(post, path = "/v1/completions", tag = "Chat", operation_id = "create_completion",
    request_body = NewCompletion,
    responses(
        (status = 200, content((Completion = "application/json"), (Completion = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody, description = "No serving process is ready yet. Retry after `Retry-After`."),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Extension(request_id): Extension<RequestId>,
    Body(fields): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let new = NewCompletion::read(fields)?;
    let streams = new.streams;
    let tx = app.tenant(holder.project_id).await?;
    let begun = completion::begin(&app.inference, tx, &requester(&holder, &request_id), new).await?;
    let version = begun.adapter_version;
    let mut response = if streams {
        Sse::new(events(Streaming::new(begun))).keep_alive(KeepAlive::default()).into_response()
    } else {
        Json(begun.whole().await?).into_response()
    };
    report_version(&mut response, version);
    Ok(response)
}

/// The state of a streamed completion.
struct Streaming {
    heading: CompletionHeading,
    parts: SelectAll<BoxStream<'static, (u32, Result<GenerateEvent, InferenceError>)>>,
    /// The number of choices for each prompt.
    choices: u32,
    /// The character offset of the next token of each choice.
    offsets: Vec<u64>,
    usage: Usage,
    /// The number of prompts whose choices have not ended.
    open: usize,
    /// The echoed prompts, which are sent first.
    ahead: Vec<Event>,
}

impl Streaming {
    fn new(begun: BegunCompletion) -> Self {
        let BegunCompletion { heading, generations, choices, .. } = begun;
        let mut offsets = vec![0; generations.len() * choices as usize];
        let mut ahead = Vec::new();
        for (prompt, generation) in (0..).zip(&generations) {
            let Some(echo) = &generation.echo else { continue };
            for choice in 0..choices {
                let index = prompt * choices + choice;
                let offset = &mut offsets[index as usize];
                ahead.push(data(&heading.piece(index, echo.text.clone(), &echo.tokens, offset)));
            }
        }
        let usage = completion::usage(&generations, 0);
        let open = generations.len();
        let parts = (0..).zip(generations).map(|(prompt, generation)| parts(prompt, generation).boxed());
        Self { heading, parts: stream::select_all(parts), choices, offsets, usage, open, ahead }
    }

    /// Returns the events for a message of a replica, and whether it was the last one.
    fn take(&mut self, prompt: u32, next: Result<GenerateEvent, InferenceError>) -> (Vec<Event>, Last) {
        match next {
            Ok(GenerateEvent::Piece { choice, text, tokens }) => {
                let index = prompt * self.choices + choice;
                let Some(offset) = self.offsets.get_mut(index as usize) else { return (Vec::new(), Last(false)) };
                (vec![data(&self.heading.piece(index, text, &tokens, offset))], Last(false))
            }
            Ok(GenerateEvent::Finished { choice, finish_reason, .. }) => {
                let index = prompt * self.choices + choice;
                (vec![data(&self.heading.last(index, finish_reason))], Last(false))
            }
            // Only chat completions have tools, and a generation returns neither of the others.
            Ok(
                GenerateEvent::ToolCallStart { .. }
                | GenerateEvent::Arguments { .. }
                | GenerateEvent::Started { .. }
                | GenerateEvent::Failed { .. },
            ) => (Vec::new(), Last(false)),
            Ok(GenerateEvent::Done { completion_tokens }) => {
                self.usage = self.usage.plus(completion_tokens);
                self.open -= 1;
                if self.open > 0 {
                    return (Vec::new(), Last(false));
                }
                let mut last: Vec<Event> = self.heading.usage(self.usage).iter().map(data).collect();
                last.push(Event::default().data("[DONE]"));
                (last, Last(true))
            }
            Err(error) => {
                error.log();
                (vec![data(&error.body())], Last(true))
            }
        }
    }
}

/// Returns the replica's messages about one prompt as a stream.
fn parts(prompt: u32, generation: Generation) -> impl Stream<Item = (u32, Result<GenerateEvent, InferenceError>)> {
    stream::unfold(Some(generation), move |generation| async move {
        let mut generation = generation?;
        let next = generation.next().await;
        let goes_on = next.as_ref().is_ok_and(|next| !matches!(next, GenerateEvent::Done { .. }));
        Some(((prompt, next), goes_on.then_some(generation)))
    })
}

/// Returns the events of the stream. It owns the generations: a client that disconnects drops them, and with them the
/// requests to the replicas.
fn events(mut streaming: Streaming) -> impl Stream<Item = Result<Event, Infallible>> {
    let ahead = std::mem::take(&mut streaming.ahead);
    let rest = stream::unfold(Some(streaming), |streaming| async move {
        let mut streaming = streaming?;
        let (prompt, next) = streaming.parts.next().await?;
        let (events, Last(last)) = streaming.take(prompt, next);
        Some((events, (!last).then_some(streaming)))
    });
    stream::iter(ahead).chain(rest.flat_map(stream::iter)).map(Ok)
}
