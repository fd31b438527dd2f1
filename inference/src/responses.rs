//! Responses of OpenAI's Responses API: chats whose answer is one response.

use attune_domain::{
    id::{AdapterVersionId, ProjectId},
    serve::GenerateEvent,
};
use attune_store::db::Tx;
use chrono::Utc;
use serde_json::{Map, Value};

use crate::{
    chat::{self, BegunChat},
    collected::{Collected, WHOLE_BYTES},
    context::Inference,
    error::InferenceError,
    generation::Generation,
    requester::Requester,
    wire::{
        param_names::ParamNames,
        responses::{
            request::{NewResponse, ResponseRequest},
            response::ModelResponse,
            stream::{ResponseEvent, ResponseStream},
        },
        sampling::refuse_stream,
    },
};

/// A response whose input is processed.
pub struct BegunResponse {
    /// The adapter version that answers; `None` for a base model or a checkpoint.
    pub adapter_version: Option<AdapterVersionId>,
    generation: Generation,
    stream: ResponseStream,
    names: ParamNames,
    collected: Collected,
}

/// The next events of a stream.
pub struct NextEvents {
    /// The events.
    pub events: Vec<ResponseEvent>,
    /// `true` if no event follows.
    pub is_last: bool,
}

/// Begins the chat of a request, as [`chat::begin`].
///
/// # Errors
/// As [`chat::begin`].
pub async fn begin(
    inference: &Inference,
    tx: Tx,
    requester: &Requester<'_>,
    request: ResponseRequest,
) -> Result<BegunResponse, InferenceError> {
    let ResponseRequest { chat, settings, names } = request;
    let begun = chat::begin(inference, tx, requester, chat).await.map_err(|error| names.apply(error))?;
    let BegunChat { heading, generation, adapter_version, .. } = begun;
    let stream = ResponseStream::new(heading, settings);
    Ok(BegunResponse { adapter_version, generation, stream, names, collected: Collected::one_of(1) })
}

/// Creates a response for a row of a batch.
///
/// # Errors
/// The request is invalid, its model does not exist, or the model is unavailable.
pub async fn complete(
    inference: &Inference,
    project: ProjectId,
    request_id: &str,
    fields: Map<String, Value>,
) -> Result<ModelResponse, InferenceError> {
    let new = NewResponse::read(fields)?;
    refuse_stream(new.chat.streams)?;
    let tx = inference.tenant(project).await?;
    begin(inference, tx, &Requester::batch(project, request_id), new).await?.whole().await
}

impl BegunResponse {
    /// Returns the first events of the stream.
    pub fn first(&mut self) -> Vec<ResponseEvent> {
        self.stream.begin()
    }

    /// Returns the next events of the stream, the last of which may report an error.
    pub async fn next(&mut self) -> NextEvents {
        match self.advance().await {
            Ok(next) => next,
            Err(error) => {
                error.log();
                NextEvents { events: self.stream.fail(&error), is_last: true }
            }
        }
    }

    /// Returns the whole response.
    ///
    /// # Errors
    /// As [`Generation::next`]. [`InferenceError::Invalid`]: the response is too large to be collected.
    pub async fn whole(mut self) -> Result<ModelResponse, InferenceError> {
        while !self.advance().await?.is_last {}
        Ok(self.stream.into_response())
    }

    async fn advance(&mut self) -> Result<NextEvents, InferenceError> {
        let next = self.generation.next().await.map_err(|error| self.names.apply(error))?;
        // The last event of a stream contains the whole response, which is collected for it.
        if !self.collected.fits(&next) {
            let message = format!("The response is larger than {WHOLE_BYTES} bytes. Request fewer log probabilities.");
            return Err(InferenceError::invalid("top_logprobs", message));
        }
        Ok(match next {
            GenerateEvent::Done { completion_tokens } => {
                let usage = self.generation.usage(completion_tokens);
                NextEvents { events: self.stream.end(usage, Utc::now().timestamp()), is_last: true }
            }
            event => NextEvents { events: self.stream.take(event), is_last: false },
        })
    }
}
