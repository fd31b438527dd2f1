//! A complete answer of a model, before it is converted to an endpoint's format.

use attune_domain::serve::{FinishReason, TokenLogprob};

/// A tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The call's ID, which the message with its result repeats.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, as JSON.
    pub arguments: String,
}

/// A complete answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The text's tokens, if they were requested.
    pub tokens: Vec<TokenLogprob>,
    /// The tool calls.
    pub calls: Vec<Call>,
    /// The finish reason; `None` before the end.
    pub finish_reason: Option<FinishReason>,
}
