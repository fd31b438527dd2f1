//! Chat completion responses in OpenAI's format: a whole object, or chunks.

use attune_domain::serve::{self, FinishReason};
use serde::Serialize;
use utoipa::ToSchema;

use crate::answer::{Answer, Call};

/// A chat completion.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// The completion's ID.
    pub id: String,
    /// The object type, always `chat.completion`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created: i64,
    /// The model name, as the request gave it.
    pub model: String,
    /// The generated choices, `n` of them.
    pub choices: Vec<Choice>,
    /// The token usage of the request.
    pub usage: Usage,
    /// A fingerprint of the base model's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
}

/// A generated choice.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Choice {
    /// The index of the choice, from 0.
    pub index: u32,
    /// The generated message.
    pub message: MessageOut,
    /// The log probabilities, if requested.
    pub logprobs: Option<ChatLogprobs>,
    /// The reason why generation stopped: `stop`, `length` or `tool_calls`.
    #[schema(value_type = String)]
    pub finish_reason: FinishReason,
}

/// The log probabilities of a choice.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// The tokens of the answer, in order.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token with its log probability and its most likely alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// The token's text; `bytes:\xf0\x9f` if the token is not valid UTF-8, such as a part of a character.
    pub token: String,
    /// The natural logarithm of the token's probability in the model's own distribution.
    pub logprob: f64,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The most likely tokens at this position.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "as in TokenLogprob")]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f64,
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Converts sampled tokens.
    pub fn new(tokens: Vec<serve::TokenLogprob>) -> Self {
        Self { content: tokens.into_iter().map(TokenLogprob::new).collect(), refusal: None }
    }
}

impl TokenLogprob {
    /// Converts a sampled token.
    pub fn new(scored: serve::TokenLogprob) -> Self {
        let top = scored.top.into_iter().map(|likely| TopLogprob {
            token: token_text(&likely.bytes),
            logprob: likely.logprob,
            bytes: likely.bytes,
        });
        Self {
            token: token_text(&scored.bytes),
            logprob: scored.logprob.unwrap_or_default(),
            top_logprobs: top.collect(),
            bytes: scored.bytes,
        }
    }
}

/// Returns a token's text, or `bytes:\xf0\x9f`, as OpenAI writes a token that is not valid UTF-8.
pub fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// A generated message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageOut {
    /// The role of the author, always `assistant`.
    pub role: &'static str,
    /// The text; `null` if the message has only tool calls.
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
    /// The tool calls, if any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<ToolCall>>)]
    pub tool_calls: Vec<ToolCall>,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCall {
    /// The ID of the call, which the message with its result refers to.
    pub id: String,
    /// The type of the tool, always `function`.
    pub r#type: &'static str,
    /// The function that the model called.
    pub function: CalledFunction,
}

/// The function of a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CalledFunction {
    /// The name of the function.
    pub name: String,
    /// The arguments, in JSON as the model wrote it.
    pub arguments: String,
}

impl From<Call> for ToolCall {
    fn from(call: Call) -> Self {
        let function = CalledFunction { name: call.name, arguments: call.arguments };
        Self { id: call.id, r#type: "function", function }
    }
}

/// The token usage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub prompt_tokens_details: PromptTokensDetails,
}

/// A breakdown of the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// The number of the prompt's leading tokens that were reused from an earlier request's computation.
    pub cached_tokens: u64,
}

impl Usage {
    /// Returns the usage of a prompt and its answer.
    pub const fn new(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }

    /// Returns the usage after more tokens of the answer.
    #[must_use]
    pub const fn plus(self, drawn: u64) -> Self {
        let cached = self.prompt_tokens_details.cached_tokens;
        Self::new(self.prompt_tokens, cached, self.completion_tokens + drawn)
    }
}

/// A chunk of a streamed chat completion: the data of one server-sent event.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The completion's ID, the same in all chunks.
    pub id: String,
    /// The object type, always `chat.completion.chunk`.
    pub object: &'static str,
    /// The creation time, in Unix seconds, the same in all chunks.
    pub created: i64,
    /// The model name, as the request gave it.
    pub model: String,
    /// A fingerprint of the base model's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
    /// One choice; empty in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// The token usage: present only if requested, and `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// A choice of a chunk.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChunkChoice {
    /// The index of the choice, from 0.
    pub index: u32,
    /// The new part of the message.
    pub delta: Delta,
    /// The log probabilities of the new tokens, if requested.
    pub logprobs: Option<ChatLogprobs>,
    /// The reason why generation stopped; `null` until the last chunk of the choice.
    #[schema(value_type = Option<String>)]
    pub finish_reason: Option<FinishReason>,
}

/// The new part of a streamed message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delta {
    /// The role of the author, `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The next part of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The next part of a tool call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
}

/// The next part of a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// The index of the call among the answer's calls, from 0.
    pub index: u32,
    /// The ID of the call, in the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The type of the tool, `function`, in the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// The new part of the function call.
    pub function: FunctionDelta,
}

/// The new part of a function call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// The name of the function, in the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The next part of the arguments.
    pub arguments: String,
}

/// The fields that all parts of one chat completion share.
#[derive(Debug, Clone)]
pub struct Heading {
    /// The completion's ID.
    pub id: String,
    /// The creation time, in Unix seconds.
    pub created: i64,
    /// The model name, as the request gave it.
    pub model: String,
    /// A fingerprint of the base model's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
    /// `true` if log probabilities were requested.
    pub with_logprobs: bool,
    /// `true` if the stream's usage was requested.
    pub with_usage: bool,
}

fn message(text: String, calls: Vec<Call>) -> MessageOut {
    let silent = text.is_empty() && !calls.is_empty();
    MessageOut {
        role: "assistant",
        content: (!silent).then_some(text),
        refusal: None,
        tool_calls: calls.into_iter().map(ToolCall::from).collect(),
    }
}

impl Heading {
    /// Returns the whole completion.
    pub fn whole(self, answers: Vec<Answer>, usage: Usage) -> ChatCompletion {
        let choices = (0..).zip(answers).map(|(index, answer)| Choice {
            index,
            message: message(answer.text, answer.calls),
            logprobs: self.logprobs(answer.tokens),
            finish_reason: answer.finish_reason.unwrap_or(FinishReason::Stop),
        });
        ChatCompletion {
            choices: choices.collect(),
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            usage,
            system_fingerprint: self.system_fingerprint,
        }
    }

    fn logprobs(&self, tokens: Vec<serve::TokenLogprob>) -> Option<ChatLogprobs> {
        self.with_logprobs.then(|| ChatLogprobs::new(tokens))
    }

    /// Returns the first chunk of a choice, which names the role.
    pub fn first(&self, index: u32) -> ChatChunk {
        self.chunk(index, Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: None }, None)
    }

    /// Returns a chunk with more text.
    pub fn piece(&self, index: u32, text: String, tokens: Vec<serve::TokenLogprob>) -> ChatChunk {
        let mut chunk = self.chunk(index, Delta { content: Some(text), ..Delta::default() }, None);
        for choice in &mut chunk.choices {
            choice.logprobs = self.logprobs(tokens.clone());
        }
        chunk
    }

    /// Returns the first chunk of a tool call.
    pub fn called(&self, index: u32, call: u32, id: String, name: String) -> ChatChunk {
        let function = FunctionDelta { name: Some(name), arguments: String::new() };
        self.calling(index, ToolCallDelta { index: call, id: Some(id), r#type: Some("function"), function })
    }

    /// Returns a chunk with more of a tool call's arguments.
    pub fn arguments(&self, index: u32, call: u32, arguments: String) -> ChatChunk {
        let function = FunctionDelta { name: None, arguments };
        self.calling(index, ToolCallDelta { index: call, id: None, r#type: None, function })
    }

    fn calling(&self, index: u32, call: ToolCallDelta) -> ChatChunk {
        self.chunk(index, Delta { tool_calls: Some(vec![call]), ..Delta::default() }, None)
    }

    /// Returns the last chunk of a choice, with its finish reason.
    pub fn last(&self, index: u32, finish_reason: FinishReason) -> ChatChunk {
        self.chunk(index, Delta::default(), Some(finish_reason))
    }

    /// Returns the chunk with the usage, if it was requested.
    pub fn usage(&self, usage: Usage) -> Option<ChatChunk> {
        let chunk =
            ChatChunk { choices: Vec::new(), usage: Some(Some(usage)), ..self.chunk(0, Delta::default(), None) };
        self.with_usage.then_some(chunk)
    }

    fn chunk(&self, index: u32, delta: Delta, finish_reason: Option<FinishReason>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.system_fingerprint.clone(),
            choices: vec![ChatChunkChoice { index, delta, logprobs: None, finish_reason }],
            usage: self.with_usage.then_some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn chunks_have_openais_shape() {
        let heading = |with_usage| Heading {
            id: "chatcmpl-1".into(),
            created: 7,
            model: "m".into(),
            system_fingerprint: "fp_1".into(),
            with_logprobs: false,
            with_usage,
        };
        let value = |chunk| serde_json::to_value(chunk).unwrap();
        let first = value(heading(false).first(0));
        assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(first.get("usage").is_none());
        let last = value(heading(true).last(0, FinishReason::Length));
        assert_eq!(last["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
        assert_eq!(last["usage"], json!(null));
        let usage = heading(true).usage(Usage::new(3, 1, 4)).map(value).unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["total_tokens"], 7);
        assert_eq!(usage["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
        assert!(heading(false).usage(Usage::new(3, 1, 4)).is_none());
    }

    #[test]
    fn a_token_that_is_no_text_is_shown_by_its_bytes() {
        assert_eq!(token_text("é".as_bytes()), "é");
        assert_eq!(token_text(&[0xf0, 0x9f]), "bytes:\\xf0\\x9f");
    }
}
