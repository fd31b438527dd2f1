//! Chat completions: the request to a replica, and its answer.

use attune_domain::{
    id::ProjectId,
    serve::{GenerateRequest, Priority},
};
use chrono::Utc;
use serde_json::{Map, Value};

use crate::{
    context::Inference,
    error::InferenceError,
    generation::{self, Generation},
    resolve::{self, AskedModel, ModelName},
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
}

/// Sends a chat to a replica of its model, which is started if necessary, and waits until its prompt is processed.
///
/// # Errors
/// [`InferenceError::ReplicaUnavailable`]; [`InferenceError::Invalid`] if the prompt is at fault.
pub async fn begin(
    inference: &Inference,
    chat: ChatRequest,
    model: AskedModel,
    request_id: &str,
) -> Result<BegunChat, InferenceError> {
    begin_as(Priority::Live, inference, chat, model, request_id).await
}

/// As [`begin`], with a priority.
pub(crate) async fn begin_as(
    priority: Priority,
    inference: &Inference,
    chat: ChatRequest,
    model: AskedModel,
    request_id: &str,
) -> Result<BegunChat, InferenceError> {
    let request = GenerateRequest {
        request_id: request_id.to_owned(),
        project: model.project_id.to_string(),
        priority,
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
    let heading = Heading {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: Utc::now().timestamp(),
        model: model.name,
        system_fingerprint: generation.fingerprint(&model.system_fingerprint),
        with_logprobs: request.sampling.logprobs.is_some(),
        with_usage: chat.with_usage,
    };
    Ok(BegunChat { heading, generation, choices: request.choices })
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
    let name = ModelName::new(&chat.model, chat.split_key.as_deref(), request_id);
    let model = resolve::find(inference, inference.tenant(project).await?, project, name).await?;
    let account = model.account(project, None);
    let mut begun = begin_as(Priority::Batch, inference, chat, model, request_id).await?;
    begun.generation.charge(&inference.meter, account, None);
    begun.whole().await
}
