//! The prompt of a request.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::template_kwargs::TemplateKwargs;

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
