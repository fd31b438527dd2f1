//! The errors of a request, with the stable codes of [`GenerateEvent::Failed`].

use attune_domain::{serve::GenerateEvent, text::tenant_text::for_tenant};
use attune_process::error_chain::chain;
use attune_text::error::EncodeError;

use crate::residency::load_error::LoadError;

/// The reason that a request fails.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The prompt leaves no context for an answer.
    #[error("the prompt has {prompt} tokens, and this model and its memory hold at most {limit}, the answer included")]
    ContextLength {
        /// The number of tokens in the prompt.
        prompt: usize,
        /// The maximum number of tokens of prompt and answer together.
        limit: usize,
    },
    /// The prompt is too long, by its bytes alone; it was not tokenized.
    #[error(
        "the prompt has {bytes} bytes, and this model and its memory hold at most {limit} tokens, the answer included"
    )]
    PromptBytes {
        /// The prompt's length in bytes.
        bytes: usize,
        /// The maximum number of tokens of prompt and answer together.
        limit: usize,
    },
    /// The project has reached its limit of answers here, or its requests wait too long.
    #[error("{0}")]
    ProjectBusy(String),
    /// All slots are taken by other requests.
    #[error("{0}")]
    ReplicaBusy(String),
    /// The adapter cannot be loaded. The base never answers in its place.
    #[error("the adapter {id} is not available: {}", chain(why))]
    Adapter {
        /// The adapter's ID.
        id: String,
        /// The reason.
        why: Box<LoadError>,
    },
    /// The prompt cannot be tokenized or rendered.
    #[error(transparent)]
    Prompt(#[from] EncodeError),
    /// The prompt has no tokens, so nothing can be predicted.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A field of the request requires what this model does not support.
    #[error("{why}")]
    Request {
        /// The field's name.
        param: &'static str,
        /// The message.
        why: String,
    },
    /// An internal error, which the caller cannot fix.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// Returns the stable, machine-readable error code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ContextLength { .. } | Self::PromptBytes { .. } => "context_length_exceeded",
            Self::Adapter { .. } => "adapter_unavailable",
            Self::Prompt(_) | Self::EmptyPrompt => "invalid_prompt",
            Self::Request { .. } => "invalid_request",
            Self::ProjectBusy(_) => "project_busy",
            Self::ReplicaBusy(_) => "replica_busy",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<Failure> for GenerateEvent {
    fn from(failure: Failure) -> Self {
        let param = if let Failure::Request { param, .. } = &failure { Some((*param).to_owned()) } else { None };
        Self::Failed { code: failure.code().into(), message: for_tenant(&failure.to_string()), param }
    }
}
