//! Responses in OpenAI's format.

use serde::Serialize;
use utoipa::ToSchema;

use super::request::ResponseSettings;
use crate::{
    error::InferenceError,
    wire::chat_answer::{TokenLogprob, Usage},
};

/// A response of a model.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelResponse {
    /// The response's ID.
    pub id: String,
    /// The object type, always `response`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The time of the last token of a completed response, in Unix seconds.
    pub completed_at: Option<i64>,
    /// The status.
    pub status: ResponseStatus,
    /// The model name, as the request gave it.
    pub model: String,
    /// The generated items, in order: messages and function calls.
    pub output: Vec<OutputItem>,
    /// The error of a failed response, in a stream.
    pub error: Option<ResponseFailure>,
    /// The reason why a response is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// The token usage; `null` in the events before the last one.
    pub usage: Option<ResponseUsage>,
    /// The settings of the request.
    #[serde(flatten)]
    pub settings: ResponseSettings,
    /// Always `null`: responses are not stored.
    pub previous_response_id: Option<String>,
    /// Always `false`.
    pub background: bool,
    /// Always `false`: responses are not stored.
    pub store: bool,
    /// Always `disabled`: an input that is longer than the context is an error.
    pub truncation: &'static str,
    /// A fingerprint of the base model's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
}

/// The status of a response, or of an item of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// Tokens are being generated.
    InProgress,
    /// The model ended its turn, or a stop condition was met.
    Completed,
    /// `max_output_tokens` was reached, or the context was full.
    Incomplete,
    /// The response could not be completed.
    Failed,
}

/// An item of the output.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum OutputItem {
    /// A message.
    Message(OutputMessage),
    /// A function call.
    Call(OutputCall),
}

/// A message of the output.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OutputMessage {
    /// The type, always `message`.
    pub r#type: &'static str,
    /// The item's ID.
    pub id: String,
    /// The status.
    pub status: ResponseStatus,
    /// The role of the author, always `assistant`.
    pub role: &'static str,
    /// One part with the text; empty in the event that adds the message.
    pub content: Vec<OutputText>,
}

/// The text of a message.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OutputText {
    /// The type, always `output_text`.
    pub r#type: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub annotations: [(); 0],
    /// The log probabilities of the tokens, if requested.
    pub logprobs: Vec<TokenLogprob>,
}

/// A function call of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutputCall {
    /// The type, always `function_call`.
    pub r#type: &'static str,
    /// The item's ID.
    pub id: String,
    /// The status.
    pub status: ResponseStatus,
    /// The ID of the call, which the item with its output refers to.
    pub call_id: String,
    /// The name of the function.
    pub name: String,
    /// The arguments, in JSON as the model wrote it.
    pub arguments: String,
}

/// The error of a failed response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResponseFailure {
    /// The code: `server_error`, `rate_limit_exceeded` or `invalid_prompt`.
    pub code: &'static str,
    /// The human-readable message.
    pub message: String,
}

impl From<&InferenceError> for ResponseFailure {
    fn from(error: &InferenceError) -> Self {
        let code = match error {
            InferenceError::Invalid { .. } => "invalid_prompt",
            InferenceError::TooManyAnswers { .. } => "rate_limit_exceeded",
            _ => "server_error",
        };
        Self { code, message: error.to_string() }
    }
}

/// The reason why a response is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// The reason, always `max_output_tokens`.
    pub reason: &'static str,
}

/// The token usage of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct ResponseUsage {
    pub input_tokens: u64,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: u64,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: u64,
}

/// A breakdown of the input's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// The number of the input's leading tokens that were reused from an earlier request's computation.
    pub cached_tokens: u64,
    /// Always 0: tokens that are cached are not charged.
    pub cache_write_tokens: u64,
}

/// A breakdown of the output's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Always 0: the text contains everything that the model generates.
    pub reasoning_tokens: u64,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        let cached_tokens = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
            total_tokens: usage.total_tokens,
        }
    }
}
