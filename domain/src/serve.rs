//! The contract between the platform and a serving process.
//!
//! A replica knows one address and one token. It fetches its `ServeSpec` with `GET /internal/replica/spec`, reports
//! its status with `POST /internal/replica/reports`, and answers `POST /generate` (same token as bearer) with one
//! `GenerateEvent` per line.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    bytes::Bytes,
    digest::Sha256,
    id::{AdapterVersionId, CheckpointId, ReplicaId},
    run::{Directive, RemoteFile},
    spec::Quantization,
    template_kwargs::TemplateKwargs,
};

/// The contract version of this release.
pub const CONTRACT_VERSION: u32 = 4;

/// Everything a serving process needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeSpec {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// The replica's ID.
    pub replica_id: ReplicaId,
    /// The digest of the base's content; nodes use it as a cache key.
    pub base_digest: Sha256,
    /// The base model's files, a Hugging Face folder.
    pub base: Vec<RemoteFile>,
    /// The quantization that is applied to the base's weights before they are used.
    pub quantization: Quantization,
    /// Seconds between reports.
    pub heartbeat_seconds: u64,
    /// The memory for adapters and for keys and values, in addition to the base.
    pub memory_budget: Bytes,
    /// The number of CPU threads.
    pub threads: u32,
}

/// One report of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The `host:port` that the replica listens on; `None` until the base is loaded.
    pub address: Option<String>,
    /// The number of requests in progress.
    pub active_requests: u64,
    /// The adapters in memory.
    pub resident_adapters: Vec<AdapterKey>,
    /// The reason why the replica cannot continue; set in its last report only.
    pub failed: Option<String>,
}

/// The response to a [`ReplicaReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReply {
    /// The instruction to the replica.
    pub directive: Directive,
}

/// The ID of an adapter version or of a checkpoint; serialized as that ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AdapterKey {
    /// A published adapter version.
    Version(AdapterVersionId),
    /// A checkpoint of an adapter in training.
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

/// The adapter that a request needs, and the files to fetch if it is not resident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterRef {
    /// The adapter's ID.
    pub id: AdapterKey,
    /// The files of a PEFT folder.
    pub files: Vec<RemoteFile>,
}

/// The prompt to generate from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Prompt {
    /// Messages, rendered with the chat template; the model generates the assistant's reply.
    Chat {
        /// The messages, in order.
        messages: Vec<ChatMessage>,
        /// Variables that the request sets in the chat template.
        template_kwargs: TemplateKwargs,
    },
    /// Plain text that the model continues.
    Text {
        /// The text of the prompt.
        text: String,
    },
    /// Token IDs that the model continues, used without changes.
    Tokens {
        /// The token IDs.
        ids: Vec<u32>,
    },
}

/// One chat message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The message's text; `None` only together with tool calls. Templates distinguish `None` from an empty string.
    pub content: Option<String>,
    /// The author's name, for templates that use it.
    #[serde(default)]
    pub name: Option<String>,
    /// The tool calls of an assistant message: OpenAI's list, but with arguments as objects instead of JSON text.
    pub tool_calls: Option<Value>,
    /// The ID of the call that a `tool` message responds to.
    pub tool_call_id: Option<String>,
}

/// The required format of an answer's text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Form {
    /// Any text.
    #[default]
    Free,
    /// A JSON object.
    Json,
    /// JSON that matches a schema.
    Schema {
        /// The JSON schema.
        schema: Value,
        /// `true`: a schema with keywords that cannot be enforced is refused; `false`: those keywords are ignored.
        strict: bool,
    },
}

/// The tools that an answer may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tools {
    /// The list of tools in the form that the chat template expects: OpenAI's list.
    pub shown: Value,
    /// The tools that may be called.
    pub definitions: Vec<Tool>,
    /// The calls that are allowed or required.
    pub choice: ToolChoice,
    /// `true`: an answer may contain more than one call.
    pub parallel: bool,
}

/// A tool that an answer may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// The tool's name.
    pub name: String,
    /// The JSON schema of the arguments; `None`: any object.
    pub parameters: Option<Value>,
    /// `true`: the arguments always match the schema.
    pub strict: bool,
}

/// The tool calls that are allowed or required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolChoice {
    /// No call is allowed.
    None,
    /// The model decides.
    Auto,
    /// At least one call is required.
    Required,
    /// At least one call, of this tool only.
    Named {
        /// The tool's name.
        name: String,
    },
}

impl ToolChoice {
    /// Returns whether the tool `tool` may be called.
    #[must_use]
    pub fn admits(&self, tool: &str) -> bool {
        match self {
            Self::None => false,
            Self::Auto | Self::Required => true,
            Self::Named { name } => name == tool,
        }
    }
}

/// The sampling parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The temperature; 0 always selects the most likely token.
    pub temperature: f64,
    /// The nucleus: only the most likely tokens that together have this probability are sampled.
    pub top_p: f64,
    /// The seed. The same seed and request sample the same tokens, whatever else is in the batch. Further answers to
    /// the same request use seeds derived from this one.
    pub seed: u64,
    /// The stop strings; the answer ends before the first of them.
    pub stop: Vec<String>,
    /// The maximum number of tokens; `None`: as many as fit into the context.
    pub max_tokens: Option<u64>,
    /// The amount subtracted from the logits of tokens that the answer already contains.
    pub presence_penalty: f64,
    /// The amount subtracted from the logits of a token for each of its occurrences in the answer.
    pub frequency_penalty: f64,
    /// The amounts added to the logits of these token IDs.
    pub logit_bias: BTreeMap<u32, f64>,
    /// The number of most likely tokens whose log-probabilities are returned at each position, in addition to the
    /// log-probability of the sampled token; `None`: no log-probabilities.
    pub logprobs: Option<u32>,
}

impl Default for Sampling {
    /// Returns the defaults of OpenAI's API.
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
    /// The request ID, for logs and traces.
    pub request_id: String,
    /// The project of the request: opaque, and the same for all requests of one project. Projects take turns.
    pub project: String,
    /// The adapter; `None`: the base model without an adapter.
    pub adapter: Option<AdapterRef>,
    /// The prompt.
    pub prompt: Prompt,
    /// `true`: the prompt's text is returned too, with its tokens' log-probabilities if those of the answer are
    /// requested.
    pub echo: bool,
    /// The required format of the answer's text.
    pub form: Form,
    /// The tools that the answer may call; only for a chat prompt.
    pub tools: Option<Tools>,
    /// The number of answers, at least one.
    pub choices: u32,
    /// The sampling parameters.
    pub sampling: Sampling,
}

/// The reason why an answer ended, in OpenAI's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string was generated.
    Stop,
    /// `max_tokens` was reached, or the context was full.
    Length,
    /// The model ended its turn with tool calls.
    ToolCalls,
}

/// A token and its log-probability: the log-softmax of the model's raw logits, before temperature, penalties and
/// biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's bytes; a token may hold only a part of a character.
    pub bytes: Vec<u8>,
    /// The log-probability; `None` for a token without a preceding context.
    pub logprob: Option<f64>,
    /// The most likely tokens at this position.
    pub top: Vec<TopLogprob>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The log-probability, as in [`TokenLogprob`].
    pub logprob: f64,
}

/// The prompt, returned with the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// The prompt's text.
    pub text: String,
    /// The prompt's tokens, if log-probabilities were requested.
    pub tokens: Vec<TokenLogprob>,
}

/// One line of the response to `POST /generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateEvent {
    /// The prompt is processed.
    Started {
        /// The length of the prompt.
        prompt_tokens: u64,
        /// The number of leading prompt tokens whose keys and values were reused from an earlier request.
        cached_tokens: u64,
        /// The prompt, if `echo` was requested.
        echo: Option<Echo>,
    },
    /// A chunk of final text: whole characters, no part of a stop string.
    Piece {
        /// The index of the answer, from 0.
        choice: u32,
        /// The text of the chunk.
        text: String,
        /// The tokens of this text, if log-probabilities were requested.
        tokens: Vec<TokenLogprob>,
    },
    /// The start of a tool call.
    #[serde(rename = "called")]
    ToolCallStart {
        /// The index of the answer, from 0.
        choice: u32,
        /// The index of the call within the answer, from 0.
        call: u32,
        /// The call's ID, which the message with the call's result repeats.
        id: String,
        /// The name of the tool.
        name: String,
    },
    /// A chunk of the arguments of a call.
    Arguments {
        /// The index of the answer, from 0.
        choice: u32,
        /// The index of the call within the answer, from 0.
        call: u32,
        /// A part of the arguments' JSON text.
        text: String,
    },
    /// The end of one answer.
    Finished {
        /// The index of the answer, from 0.
        choice: u32,
        /// The reason why the answer ended.
        finish_reason: FinishReason,
    },
    /// The end of the whole response.
    Done {
        /// The number of tokens sampled for all answers, end tokens included.
        completion_tokens: u64,
    },
    /// The end of the response after an error. No output of another model was sent instead.
    Failed {
        /// A stable, machine-readable code: `context_length_exceeded`, `adapter_unavailable`, `invalid_prompt`,
        /// `invalid_request`, `project_busy`, `replica_busy`, `internal`.
        code: String,
        /// The error message.
        message: String,
        /// The request field at fault, if it is not the prompt.
        param: Option<String>,
    },
}
