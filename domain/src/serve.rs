//! The contract between the platform and a serving process.
//!
//! A replica knows one address and one token. It fetches its [`ServeSpec`] with `GET /internal/replica/spec`, says how
//! it is with `POST /internal/replica/reports`, and answers `POST /generate` (same token as bearer) with one
//! [`GenerateEvent`] a line.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    bytes::Bytes,
    id::{AdapterVersionId, CheckpointId, ReplicaId},
    run::{Directive, RemoteFile},
};

/// What this release speaks.
pub const CONTRACT_VERSION: u32 = 3;

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
    pub resident_adapters: Vec<AdapterId>,
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
pub enum AdapterId {
    /// The adapter that a job gave.
    Version(AdapterVersionId),
    /// The adapter as it was on the way.
    Checkpoint(CheckpointId),
}

impl fmt::Display for AdapterId {
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
    pub id: AdapterId,
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
    },
    /// Plain text, gone on with.
    Text {
        /// The text.
        text: String,
    },
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0: always the most likely token.
    pub temperature: f64,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f64,
    /// The same seed and request draw the same tokens, whatever else is in the batch.
    pub seed: u64,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// At most so many tokens; `None`: as many as the context has room for.
    pub max_tokens: Option<u64>,
}

/// A request to a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// For logs and traces.
    pub request_id: String,
    /// `None`: the base itself.
    pub adapter: Option<AdapterRef>,
    /// From what.
    pub prompt: Prompt,
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
}

/// One line of a replica's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateEvent {
    /// The prompt is read.
    Started {
        /// Its length.
        prompt_tokens: u64,
    },
    /// Text that is final: whole characters, no part of a stop string.
    Piece {
        /// The text.
        text: String,
    },
    /// The end.
    Finished {
        /// Why.
        finish_reason: FinishReason,
        /// Tokens drawn, the end token included.
        completion_tokens: u64,
    },
    /// The end, badly. Nothing of another model's answer was sent in its place.
    Failed {
        /// Stable, for programs: `context_length_exceeded`, `adapter_unavailable`, `invalid_prompt`, `internal`.
        code: String,
        /// A sentence.
        message: String,
    },
}
