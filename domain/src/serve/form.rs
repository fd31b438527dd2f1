//! The required format of an answer, and the tools that it may call.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// Text that a regular expression matches as a whole.
    Regex {
        /// The regular expression, in the syntax of Rust's `regex` crate.
        pattern: String,
    },
    /// Text that the rule `start` of a Lark grammar derives.
    Lark {
        /// The grammar.
        definition: String,
    },
    /// One of several texts.
    Choice {
        /// The texts.
        texts: Vec<String>,
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
