//! The contract between the platform and a serving process.
//!
//! A replica knows one address and one token. It fetches its [`ServeSpec`] with `GET /internal/replica/spec`, says how
//! it is with `POST /internal/replica/reports`, and answers `POST /generate` (same token as bearer) with one
//! [`GenerateEvent`] a line.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    bytes::Bytes,
    id::{AdapterVersionId, CheckpointId, ReplicaId},
    run::{Directive, RemoteFile},
    spec::Quantization,
    template_kwargs::TemplateKwargs,
};

/// What this release speaks.
pub const CONTRACT_VERSION: u32 = 4;

/// Everything a serving process needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeSpec {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// Which replica this is.
    pub replica_id: ReplicaId,
    /// Names the base's content; nodes cache by it.
    pub base_digest: String,
    /// Base model, a Hugging Face folder.
    pub base: Vec<RemoteFile>,
    /// The quantization that the base's weights go through before they are computed with.
    pub quantization: Quantization,
    /// Seconds between reports.
    pub heartbeat_seconds: u64,
    /// Memory for adapters and for keys and values, beside the base.
    pub memory_budget: Bytes,
    /// Processor threads.
    pub threads: u32,
}

/// One post of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// `host:port` where it listens; `None` until the base is loaded.
    pub address: Option<String>,
    /// Requests that it works on.
    pub active_requests: u64,
    /// Adapters in memory.
    pub resident_adapters: Vec<AdapterKey>,
    /// Why it cannot go on; the last report.
    pub failed: Option<String>,
}

/// The answer to a [`ReplicaReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReply {
    /// What to do.
    pub directive: Directive,
}

/// What corrects a base. Written as its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AdapterKey {
    /// The adapter that a job gave.
    Version(AdapterVersionId),
    /// The adapter as it was on the way.
    Checkpoint(CheckpointId),
}

impl fmt::Display for AdapterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(id) => id.fmt(f),
            Self::Checkpoint(id) => id.fmt(f),
        }
    }
}

/// The adapter that a request wants, and where to get it if it is not resident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterRef {
    /// Which.
    pub id: AdapterKey,
    /// A PEFT folder.
    pub files: Vec<RemoteFile>,
}

/// What to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Prompt {
    /// Messages, rendered with the chat template; the answer is the assistant's.
    Chat {
        /// In order.
        messages: Vec<ChatMessage>,
        /// Variables that the request sets in the chat template.
        template_kwargs: TemplateKwargs,
    },
    /// Plain text, gone on with.
    Text {
        /// The text.
        text: String,
    },
    /// Token ids, gone on with as they are.
    Tokens {
        /// The ids.
        ids: Vec<u32>,
    },
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said; `None` only beside calls. Templates tell that from an empty text.
    pub content: Option<String>,
    /// The speaker's name, for templates that read it.
    #[serde(default)]
    pub name: Option<String>,
    /// The calls that an assistant made: a list as OpenAI's, but with arguments that are objects.
    pub tool_calls: Option<Value>,
    /// Which call a tool answers.
    pub tool_call_id: Option<String>,
}

/// What an answer's text must be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Form {
    /// Anything.
    #[default]
    Free,
    /// A JSON object.
    Json,
    /// JSON of a schema.
    Schema {
        /// The JSON schema.
        schema: Value,
        /// What of the schema cannot be enforced is refused, not passed over.
        strict: bool,
    },
}

/// Tools that an answer may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tools {
    /// As the chat template takes them: OpenAI's list.
    pub shown: Value,
    /// What may be called.
    pub definitions: Vec<Tool>,
    /// Which calls may or must come.
    pub choice: ToolChoice,
    /// More than one call may come.
    pub parallel: bool,
}

/// A tool that an answer may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments; `None`: any object.
    pub parameters: Option<Value>,
    /// Its arguments are always of the schema.
    pub strict: bool,
}

/// Which calls may or must come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolChoice {
    /// None.
    None,
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
    /// At least one, of this tool.
    Named {
        /// Its name.
        name: String,
    },
}

impl ToolChoice {
    /// Whether a tool of this name may be called.
    #[must_use]
    pub fn admits(&self, tool: &str) -> bool {
        match self {
            Self::None => false,
            Self::Auto | Self::Required => true,
            Self::Named { name } => name == tool,
        }
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0: always the most likely token.
    pub temperature: f64,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f64,
    /// The same seed and request draw the same tokens, whatever else is in the batch. Further answers to the same request
    /// have seeds of their own, which follow from this one.
    pub seed: u64,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// At most so many tokens; `None`: as many as the context has room for.
    pub max_tokens: Option<u64>,
    /// Taken from the logits of tokens that the answer has already.
    pub presence_penalty: f64,
    /// Taken from the logits of tokens that the answer has already, as often as it has them.
    pub frequency_penalty: f64,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Tells each token's log-probability, and those of so many most likely tokens in its place.
    pub logprobs: Option<u32>,
}

impl Default for Sampling {
    /// As OpenAI's API draws when nothing is asked for.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
            max_tokens: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
        }
    }
}

/// A request to a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// For logs and traces.
    pub request_id: String,
    /// Whose it is: opaque, and the same for all requests of one project. Projects take turns.
    pub project: String,
    /// `None`: the base itself.
    pub adapter: Option<AdapterRef>,
    /// From what.
    pub prompt: Prompt,
    /// The prompt's text is said too, and its tokens' log-probabilities if those of the answer are.
    pub echo: bool,
    /// What the answer's text must be.
    pub form: Form,
    /// What it may call; only for a chat.
    pub tools: Option<Tools>,
    /// How many answers, at least one.
    pub choices: u32,
    /// How.
    pub sampling: Sampling,
}

/// Why an answer ended. OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens`, or the context was full.
    Length,
    /// The model ended its turn with calls of tools.
    ToolCalls,
}

/// A token, and how likely the model held it to be: the logarithm of its share in the softmax of the model's own logits,
/// before temperature, penalties and biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Its text; a token may hold a part of a character only.
    pub bytes: Vec<u8>,
    /// `None`: nothing stood before it that it could follow.
    pub logprob: Option<f64>,
    /// The most likely tokens in its place.
    pub top: Vec<Likely>,
}

/// A token that might have stood in a place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Likely {
    /// Its text.
    pub bytes: Vec<u8>,
    /// As in [`Scored`].
    pub logprob: f64,
}

/// The prompt, said again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// Its text.
    pub text: String,
    /// Its tokens, if log-probabilities were asked for.
    pub tokens: Vec<Scored>,
}

/// One line of a replica's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateEvent {
    /// The prompt is read.
    Started {
        /// Its length.
        prompt_tokens: u64,
        /// How many of its first tokens were read for an earlier request, and not again.
        cached_tokens: u64,
        /// If it was asked for.
        echo: Option<Echo>,
    },
    /// Text that is final: whole characters, no part of a stop string.
    Piece {
        /// Of which answer, counted from 0.
        choice: u32,
        /// The text.
        text: String,
        /// The tokens that it is of, if log-probabilities were asked for.
        tokens: Vec<Scored>,
    },
    /// A call of a tool begins.
    Called {
        /// In which answer.
        choice: u32,
        /// Its place among the answer's calls, from 0.
        call: u32,
        /// Names it, so that its result can be told.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of the arguments of a call.
    Arguments {
        /// In which answer.
        choice: u32,
        /// Which call.
        call: u32,
        /// JSON.
        text: String,
    },
    /// The end of one answer.
    Finished {
        /// Of which.
        choice: u32,
        /// Why.
        finish_reason: FinishReason,
    },
    /// The end of all.
    Done {
        /// Tokens drawn for all answers, end tokens included.
        completion_tokens: u64,
    },
    /// The end, badly. Nothing of another model's answer was sent in its place.
    Failed {
        /// Stable, for programs: `context_length_exceeded`, `adapter_unavailable`, `invalid_prompt`, `invalid_request`,
        /// `project_busy`, `replica_busy`, `internal`.
        code: String,
        /// A sentence.
        message: String,
        /// The request's field that is at fault, where it is another than the prompt.
        param: Option<String>,
    },
}
