//! Chat completions: the request to a replica, and its answer.

use attune_domain::{
    id::{AdapterVersionId, ProjectId},
    serve::GenerateRequest,
};
use attune_store::db::Tx;
use chrono::Utc;
use serde_json::{Map, Value};

use crate::{
    context::Inference,
    error::InferenceError,
    generation::{self, Generation},
    requester::Requester,
    shadow,
    wire::{
        chat::{ChatRequest, NewChat},
        chat_answer::{ChatCompletion, Heading},
        sampling::refuse_stream,
    },
};

/// A chat completion whose prompt is processed.
pub struct BegunChat {
    /// The fields that all parts of the completion share.
    pub heading: Heading,
    /// The answers.
    pub generation: Generation,
    /// The number of answers.
    pub choices: u32,
    /// The adapter version that answers; `None` for a base model or a checkpoint.
    pub adapter_version: Option<AdapterVersionId>,
}

/// Finds the model of a chat, sends the chat to a replica of it, which is started if necessary, and waits until the
/// prompt is processed. `tx` is a transaction of the requester's project.
///
/// # Errors
/// [`InferenceError::ModelNotFound`]; [`InferenceError::ReplicaUnavailable`]; [`InferenceError::Invalid`] if the prompt
/// is at fault.
pub async fn begin(
    inference: &Inference,
    tx: Tx,
    requester: &Requester<'_>,
    chat: ChatRequest,
) -> Result<BegunChat, InferenceError> {
    let model = requester.model(inference, tx, &chat.model, chat.split_key.as_deref()).await?;
    let request = GenerateRequest {
        request_id: requester.request_id.to_owned(),
        project: model.project_id.to_string(),
        priority: requester.priority,
        adapter: model.adapter.clone(),
        keep: model.keep,
        prompt: chat.prompt,
        truncate: None,
        echo: false,
        form: chat.form,
        tools: chat.tools,
        choices: chat.choices,
        sampling: chat.sampling,
    };
    let begun = generation::begin(inference, &model, &request).await;
    let mut generation = begun.map_err(|error| chat.names.apply(error))?;
    shadow::follow(inference, &model, &request, &mut generation);
    requester.charge(inference, &model, &mut generation);
    let adapter_version = model.adapter_version();
    let heading = Heading {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: Utc::now().timestamp(),
        model: model.name,
        system_fingerprint: generation.fingerprint(&model.system_fingerprint),
        with_logprobs: request.sampling.logprobs.is_some(),
        with_usage: chat.with_usage,
    };
    Ok(BegunChat { heading, generation, choices: request.choices, adapter_version })
}

impl BegunChat {
    /// Returns the whole completion.
    ///
    /// # Errors
    /// As [`Generation::whole`].
    pub async fn whole(mut self) -> Result<ChatCompletion, InferenceError> {
        let (answers, completion_tokens) = self.generation.whole(self.choices, 1).await?;
        let usage = self.generation.usage(completion_tokens);
        Ok(self.heading.whole(answers, usage))
    }
}

/// Creates a chat completion for a row of a batch.
///
/// # Errors
/// The request is invalid, its model does not exist, or the model is unavailable.
pub async fn complete(
    inference: &Inference,
    project: ProjectId,
    request_id: &str,
    fields: Map<String, Value>,
) -> Result<ChatCompletion, InferenceError> {
    let chat = NewChat::read(fields)?;
    refuse_stream(chat.streams)?;
    let tx = inference.tenant(project).await?;
    begin(inference, tx, &Requester::batch(project, request_id), chat).await?.whole().await
}
