//! Why a request gets no answer, in the stable words of [`GenerateEvent::Failed`], and errors as text.

use attune_domain::{serve::GenerateEvent, text::tenant_text::for_tenant};
use attune_text::error::EncodeError;

/// A request's failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, and {limit} is the most that this model and its memory hold, the answer included"
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that prompt and answer may have together.
        limit: usize,
    },
    /// The prompt is so long that its tokens need not be counted.
    #[error(
        "the prompt has {bytes} bytes, and {limit} tokens are the most that this model and its memory hold, the answer \
         included"
    )]
    PromptBytes {
        /// Of the text.
        bytes: usize,
        /// Tokens that prompt and answer may have together.
        limit: usize,
    },
    /// The project has as many requests here as it may have, or they wait too long.
    #[error("{0}")]
    ProjectBusy(String),
    /// Others have all places.
    #[error("{0}")]
    ReplicaBusy(String),
    /// The adapter cannot be had. The base's answer is never given in its place.
    #[error("the adapter {id} is not available: {why}")]
    Adapter {
        /// Which.
        id: String,
        /// Why not.
        why: String,
    },
    /// The prompt cannot be turned into tokens.
    #[error(transparent)]
    Prompt(#[from] EncodeError),
    /// The prompt has no token, so there is nothing to go on from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A field of the request asks for what this model cannot do.
    #[error("{why}")]
    Request {
        /// The field.
        param: &'static str,
        /// A sentence.
        why: String,
    },
    /// A fault of ours; the caller cannot mend it.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// The stable word for programs.
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

/// Joins an error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
