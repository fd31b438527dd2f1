//! Chat: a model's name to a base or an adapter, a replica that answers, the answer whole or in chunks.

use std::convert::Infallible;

use attune_domain::{
    run::Blob,
    serve::{AdapterId, AdapterRef, GenerateRequest, Prompt},
};
use attune_store::{
    adapter::{self, Model},
    base_model,
    objects::Objects,
};
use axum::{
    Extension, Json,
    extract::State,
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
    body::Body,
    caller::Caller,
    error::{ApiError, ErrorBody},
    generation::{self, Generation, Next},
    request::RequestId,
    wire::{
        chat::NewChat,
        completion::{Chunk, Completion, Heading, Usage},
    },
};

/// Go on with a chat.
///
/// Answers for a base model or one of the project's tuned ones. A serving process is started at the first request and
/// waited for. With `stream` the answer comes as server-sent events, each with a `chat.completion.chunk`, and ends with
/// `[DONE]`; an answer that cannot be finished ends with an event that holds an error instead.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "Chat", operation_id = "create_chat_completion",
    request_body = NewChat,
    responses(
        (status = 200, content((Completion = "application/json"), (Chunk = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody, description = "No serving process is ready yet; ask again after Retry-After."),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Extension(request_id): Extension<RequestId>,
    Body(fields): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let chat = NewChat::read(fields)?;
    let mut db = app.tenant(holder.project_id).await?;
    let model = adapter::resolve(&mut db, holder.project_id, &chat.model).await;
    let model = model.map_err(ApiError::on_read(&chat.model))?;
    let base = base_model::get(&mut db, model.base_model_id()).await?;
    drop(db); // waiting for a replica may take minutes
    let request = GenerateRequest {
        request_id: request_id.0,
        adapter: adapter_ref(&app.objects, &model).await?,
        prompt: Prompt::Chat { messages: chat.chat_messages() },
        sampling: chat.sampling(rand::random()),
    };
    let generation = generation::begin(&app, base.base_model_id, &request).await?;
    let heading = heading(&chat, &base.digest);
    if chat.streams() {
        Ok(Sse::new(events(heading, generation)).keep_alive(KeepAlive::default()).into_response())
    } else {
        Ok(Json(whole(heading, generation).await?).into_response())
    }
}

fn heading(chat: &NewChat, digest: &str) -> Heading {
    Heading {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: Utc::now().timestamp(),
        model: chat.model.clone(),
        system_fingerprint: format!("fp_{}", digest.get(..12).unwrap_or(digest)),
        with_usage: chat.streams_usage(),
    }
}

async fn adapter_ref(objects: &Objects, model: &Model) -> Result<Option<AdapterRef>, ApiError> {
    let (id, blobs): (_, Vec<&Blob>) = match model {
        Model::Base(_) => return Ok(None),
        Model::Tuned(version) => (AdapterId::Version(version.adapter_version_id), version.files.iter().collect()),
        Model::Checkpoint(named) => {
            (AdapterId::Checkpoint(named.checkpoint.checkpoint_id), named.adapter_files().collect())
        }
    };
    let mut files = Vec::with_capacity(blobs.len());
    for blob in blobs {
        files.push(objects.remote_file(&blob.name, &blob.sha256, blob.bytes).await?);
    }
    Ok(Some(AdapterRef { id, files }))
}

async fn whole(heading: Heading, mut generation: Generation) -> Result<Completion, ApiError> {
    let mut text = String::new();
    loop {
        match generation.next().await? {
            Next::Piece(piece) => text.push_str(&piece),
            Next::Finished { finish_reason, completion_tokens } => {
                let usage = Usage::new(generation.prompt_tokens, completion_tokens);
                return Ok(heading.whole(text, finish_reason, usage));
            }
        }
    }
}

/// The stream drops the generation when the caller leaves, and with it the request to the replica.
fn events(heading: Heading, generation: Generation) -> impl Stream<Item = Result<Event, Infallible>> {
    let first = data(&heading.first());
    let rest = stream::unfold(Some((heading, generation)), |state| async move {
        let (heading, mut generation) = state?;
        Some(match generation.next().await {
            Ok(Next::Piece(text)) => (vec![data(&heading.piece(text))], Some((heading, generation))),
            Ok(Next::Finished { finish_reason, completion_tokens }) => {
                let usage = heading.usage(Usage::new(generation.prompt_tokens, completion_tokens));
                let mut last = vec![data(&heading.last(finish_reason))];
                last.extend(usage.iter().map(data));
                last.push(Event::default().data("[DONE]"));
                (last, None)
            }
            Err(error) => {
                error.log();
                (vec![data(&error.body())], None)
            }
        })
    });
    stream::once(async { vec![first] }).chain(rest).flat_map(stream::iter).map(Ok)
}

fn data(body: &impl Serialize) -> Event {
    // These types have no map keys or numbers that JSON cannot hold.
    Event::default().data(serde_json::to_string(body).unwrap_or_default())
}
