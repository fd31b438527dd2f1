//! Chat answers as OpenAI shapes them: whole, or in chunks.

use attune_domain::serve::{FinishReason, Scored};
use serde::Serialize;
use utoipa::ToSchema;

use crate::inference::answer::{Answer, Call};

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Its id.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created: i64,
    /// As the request named it.
    pub model: String,
    /// As many as were asked for.
    pub choices: Vec<Choice>,
    /// What was counted.
    pub usage: Usage,
    /// Names the base's content.
    pub system_fingerprint: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Choice {
    /// Its place, from 0.
    pub index: u32,
    /// What was said.
    pub message: MessageOut,
    /// If they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    #[schema(value_type = String)]
    pub finish_reason: FinishReason,
}

/// How likely each token was.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// The answer's tokens, in order.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token and its rivals.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text; `bytes:\xf0\x9f` if it holds a part of a character only.
    pub token: String,
    /// The natural logarithm of its probability in the model's own distribution.
    pub logprob: f64,
    /// Its text in UTF-8.
    pub bytes: Vec<u8>,
    /// The most likely tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that might have stood in a place.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "as in TokenLogprob")]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f64,
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Of these tokens.
    pub fn new(tokens: Vec<Scored>) -> Self {
        Self { content: tokens.into_iter().map(TokenLogprob::new).collect(), refusal: None }
    }
}

impl TokenLogprob {
    fn new(scored: Scored) -> Self {
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

/// A token's text, as OpenAI shows one that is no text: `bytes:\xf0\x9f`.
pub fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageOut {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; `null` if there are only calls.
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
    /// The tools that are called, if any is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<ToolCall>>)]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCall {
    /// Names it, for the message with its result.
    pub id: String,
    /// Always `function`.
    pub r#type: &'static str,
    /// What is called.
    pub function: CalledFunction,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CalledFunction {
    /// The tool's name.
    pub name: String,
    /// Its arguments: JSON, as the model wrote it.
    pub arguments: String,
}

impl From<Call> for ToolCall {
    fn from(call: Call) -> Self {
        let function = CalledFunction { name: call.name, arguments: call.arguments };
        Self { id: call.id, r#type: "function", function }
    }
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What is known of a prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// How many of the prompt's first tokens were read for an earlier request, and not again.
    pub cached_tokens: u64,
}

impl Usage {
    /// Of a prompt and its answer.
    pub const fn new(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }

    /// The same after so many more tokens were drawn.
    #[must_use]
    pub const fn plus(self, drawn: u64) -> Self {
        let cached = self.prompt_tokens_details.cached_tokens;
        Self::new(self.prompt_tokens, cached, self.completion_tokens + drawn)
    }
}

/// A piece of an answer: the data of one server-sent event.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix time, in seconds; the same in all chunks.
    pub created: i64,
    /// As the request named it.
    pub model: String,
    /// Names the base's content.
    pub system_fingerprint: String,
    /// One; none in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Only there when it was asked for, and `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChunkChoice {
    /// Its answer's place, from 0.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// If they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `null` until the end.
    #[schema(value_type = Option<String>)]
    pub finish_reason: Option<FinishReason>,
}

/// What is new.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
}

/// More of a call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Its place among the answer's calls, from 0.
    pub index: u32,
    /// In the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// What is new.
    pub function: FunctionDelta,
}

/// More of what is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// The tool's name, in the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// What all parts of one answer share.
#[derive(Debug, Clone)]
pub struct Heading {
    /// The answer's id.
    pub id: String,
    /// Unix time, in seconds.
    pub created: i64,
    /// As the request named it.
    pub model: String,
    /// Names the base's content.
    pub system_fingerprint: String,
    /// Whether tokens are told.
    pub with_logprobs: bool,
    /// Whether the stream tells its usage.
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
    /// The whole answer.
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

    fn logprobs(&self, tokens: Vec<Scored>) -> Option<ChatLogprobs> {
        self.with_logprobs.then(|| ChatLogprobs::new(tokens))
    }

    /// The first chunk of an answer: who speaks.
    pub fn first(&self, index: u32) -> ChatChunk {
        self.chunk(index, Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: None }, None)
    }

    /// A chunk with more text.
    pub fn piece(&self, index: u32, text: String, tokens: Vec<Scored>) -> ChatChunk {
        let mut chunk = self.chunk(index, Delta { content: Some(text), ..Delta::default() }, None);
        for choice in &mut chunk.choices {
            choice.logprobs = self.logprobs(tokens.clone());
        }
        chunk
    }

    /// The first chunk of a call.
    pub fn called(&self, index: u32, call: u32, id: String, name: String) -> ChatChunk {
        let function = FunctionDelta { name: Some(name), arguments: String::new() };
        self.calling(index, ToolCallDelta { index: call, id: Some(id), r#type: Some("function"), function })
    }

    /// A chunk with more of a call's arguments.
    pub fn arguments(&self, index: u32, call: u32, arguments: String) -> ChatChunk {
        let function = FunctionDelta { name: None, arguments };
        self.calling(index, ToolCallDelta { index: call, id: None, r#type: None, function })
    }

    fn calling(&self, index: u32, call: ToolCallDelta) -> ChatChunk {
        self.chunk(index, Delta { tool_calls: Some(vec![call]), ..Delta::default() }, None)
    }

    /// The last chunk of an answer: why it ended.
    pub fn last(&self, index: u32, finish_reason: FinishReason) -> ChatChunk {
        self.chunk(index, Delta::default(), Some(finish_reason))
    }

    /// The chunk with the usage, if it was asked for.
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
