//! The contract between the platform and a serving process.
//!
//! A replica knows one address and one token. It fetches its `ServeSpec` with `GET /internal/replica/spec`, reports
//! its status with `POST /internal/replica/reports`, and answers `POST /generate` (same token as bearer) with one
//! `GenerateEvent` per line.

mod adapter;
mod draft;
mod engine;
mod event;
mod form;
mod kv_cache;
mod merge;
mod prompt;
mod replica;
mod request;
mod residency;

pub use adapter::{AdapterKey, AdapterMerge, AdapterPart, AdapterRef, AdapterTier};
pub use draft::{DraftSpec, draft_refusal};
pub use engine::Engine;
pub use event::{Echo, FinishReason, GenerateEvent, TokenLogprob, TopLogprob};
pub use form::{Form, Tool, ToolChoice, Tools};
pub use kv_cache::KvCacheDtype;
pub use merge::{MajoritySign, MergeRule, MergeStrategy};
pub use prompt::{ChatMessage, Prompt};
pub use replica::{ReplicaReply, ReplicaReport, ServeSpec};
pub use request::{GenerateRequest, Priority, Sampling};
pub use residency::{AdapterState, DEFAULT_DISK_CACHE, DiskAdapter};

/// The contract version of this release.
pub const CONTRACT_VERSION: u32 = 5;

/// The maximum time that a live request waits for its first slot, in seconds: at one replica, and at all that it is
/// sent to together.
pub const MOST_QUEUE_SECONDS: u64 = 120;

/// The maximum number of tokens that may be generated for one request that has several answers: their number, over all
/// prompts, times the maximum length of each. A single answer has no limit but the context length.
pub const MAX_GENERATED_TOKENS: u64 = 1 << 20;
