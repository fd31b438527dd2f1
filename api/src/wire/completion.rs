//! Chat answers as OpenAI shapes them: whole, or in chunks.

use attune_domain::serve::FinishReason;
use serde::Serialize;
use utoipa::ToSchema;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Completion {
    /// Its id.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created: i64,
    /// As the request named it.
    pub model: String,
    /// Always one.
    pub choices: Vec<Choice>,
    /// What was counted.
    pub usage: Usage,
    /// Names the base's content.
    pub system_fingerprint: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Choice {
    /// Always 0.
    pub index: u32,
    /// What was said.
    pub message: MessageOut,
    /// Always `null`.
    #[schema(value_type = Option<Object>)]
    pub logprobs: Option<()>,
    /// `stop` or `length`.
    #[schema(value_type = String)]
    pub finish_reason: FinishReason,
}

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageOut {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always `null`.
    pub refusal: Option<String>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}

impl Usage {
    /// Of a prompt and its answer.
    pub const fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// A piece of an answer: the data of one server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Chunk {
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
    pub choices: Vec<ChunkChoice>,
    /// Only there when it was asked for, and `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Always 0.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Always `null`.
    #[schema(value_type = Option<Object>)]
    pub logprobs: Option<()>,
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
    /// Whether the stream tells its usage.
    pub with_usage: bool,
}

impl Heading {
    /// The whole answer.
    pub fn whole(self, text: String, finish_reason: FinishReason, usage: Usage) -> Completion {
        let message = MessageOut { role: "assistant", content: text, refusal: None };
        Completion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            choices: vec![Choice { index: 0, message, logprobs: None, finish_reason }],
            usage,
            system_fingerprint: self.system_fingerprint,
        }
    }

    /// The first chunk: who speaks.
    pub fn first(&self) -> Chunk {
        self.chunk(Delta { role: Some("assistant"), content: Some(String::new()) }, None)
    }

    /// A chunk with more text.
    pub fn piece(&self, text: String) -> Chunk {
        self.chunk(Delta { role: None, content: Some(text) }, None)
    }

    /// The last chunk of the answer: why it ended.
    pub fn last(&self, finish_reason: FinishReason) -> Chunk {
        self.chunk(Delta::default(), Some(finish_reason))
    }

    /// The chunk with the usage, if it was asked for.
    pub fn usage(&self, usage: Usage) -> Option<Chunk> {
        let chunk = Chunk { choices: Vec::new(), usage: Some(Some(usage)), ..self.chunk(Delta::default(), None) };
        self.with_usage.then_some(chunk)
    }

    fn chunk(&self, delta: Delta, finish_reason: Option<FinishReason>) -> Chunk {
        Chunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.system_fingerprint.clone(),
            choices: vec![ChunkChoice { index: 0, delta, logprobs: None, finish_reason }],
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
            with_usage,
        };
        let value = |chunk| serde_json::to_value(chunk).unwrap();
        let first = value(heading(false).first());
        assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(first.get("usage").is_none());
        let last = value(heading(true).last(FinishReason::Length));
        assert_eq!(last["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
        assert_eq!(last["usage"], json!(null));
        let usage = heading(true).usage(Usage::new(3, 4)).map(value).unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["total_tokens"], 7);
        assert!(heading(false).usage(Usage::new(3, 4)).is_none());
    }
}
