//! A whole answer of a model, before it has the shape of an endpoint.

use attune_domain::serve::{FinishReason, Scored};

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The call's id, which the message with its result repeats.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, as JSON.
    pub arguments: String,
}

/// One whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The text's tokens, if they were asked for.
    pub tokens: Vec<Scored>,
    /// The tools that were called.
    pub calls: Vec<Call>,
    /// The reason for which it ended; `None` before the end.
    pub finish_reason: Option<FinishReason>,
}
