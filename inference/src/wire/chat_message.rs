//! Chat messages in OpenAI's request format.

use attune_domain::{serve::ChatMessage, text::message_text::truncated};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::json_schema::depth_of;
use crate::error::InferenceError;

/// The maximum number of tool calls in one message.
const MOST_CALLS: usize = 128;
/// The maximum length of a tool call's ID, in bytes.
const CALL_ID_BYTES: usize = 256;
/// The maximum nesting depth of a tool call's arguments, in arrays and objects of their JSON: a replica parses them as
/// a part of its request, whose depth its parser limits to 128.
const ARGUMENTS_DEPTH: usize = 48;
/// The maximum length of an author's name, in bytes.
const SPEAKER_BYTES: usize = 256;

/// A message of the conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageIn {
    /// The role of the author: `system`, `developer` (the same), `user`, `assistant` or `tool`.
    pub role: String,
    /// The content of the message: a string, or parts of type `text`. Optional for an assistant that calls tools.
    pub content: Option<Content>,
    /// The tool calls of an assistant's message.
    pub tool_calls: Option<Vec<CallIn>>,
    /// The ID of the call whose result this is, in a tool's message.
    pub tool_call_id: Option<String>,
    /// The name of the author, for models whose chat template renders it.
    pub name: Option<String>,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// A string.
    Text(String),
    /// Parts, which are concatenated without a separator.
    Parts(Vec<Part>),
}

/// A content part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The type of the part. Only `text` is supported.
    #[schema(example = "text")]
    pub r#type: String,
    /// The text of the part.
    pub text: String,
}

/// A tool call of an assistant's message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallIn {
    /// The ID of the call, as the response gave it.
    pub id: String,
    /// The type of the tool, always `function`.
    pub r#type: String,
    /// The function that was called.
    pub function: CalledIn,
}

/// The function of a tool call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CalledIn {
    /// The name of the function.
    pub name: String,
    /// The arguments, as a JSON object in a string.
    pub arguments: String,
}

struct ContentVisitor;

impl<'de> serde::de::Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string or a list of text parts")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<Content, A::Error> {
        Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(Content::Parts)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// Fields that may be empty in a message: a client may send a response's message back unchanged.
const EMPTY: [&str; 7] = ["function_call", "audio", "refusal", "name", "annotations", "tool_calls", "tool_call_id"];
/// The fields of [`EMPTY`] that no model here reads: refused unless empty.
const UNREAD: [&str; 4] = ["function_call", "audio", "refusal", "annotations"];

/// Checks message `i` before it is parsed: removes empty fields, and refuses, with a specific message, what OpenAI's
/// messages may contain and is unsupported here.
///
/// # Errors
/// [`InferenceError::Invalid`].
pub fn look_through(i: usize, message: &mut Value) -> Result<(), InferenceError> {
    let at = |field: &str| format!("messages[{i}].{field}");
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|name, value| !(EMPTY.contains(&name.as_str()) && says_nothing(value)));
        if let Some(field) = UNREAD.iter().find(|field| fields.contains_key(**field)) {
            let message = format!("Unsupported '{}': no model here reads it.", at(field));
            return Err(InferenceError::unsupported(at(field), message));
        }
    }
    match message.get("role").and_then(Value::as_str) {
        Some("system" | "developer" | "user" | "assistant" | "tool") | None => {}
        Some("function") => {
            let message = format!("Unsupported '{}': 'function'; give results of tools as 'tool'.", at("role"));
            return Err(InferenceError::unsupported(at("role"), message));
        }
        Some(role) => {
            let allowed = "system, developer, user, assistant, tool";
            let message = format!("Invalid '{}': '{}'; allowed: {allowed}.", at("role"), truncated(role));
            return Err(InferenceError::invalid(at("role"), message));
        }
    }
    for (j, part) in message.get("content").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        if kind != "text" {
            let at = format!("messages[{i}].content[{j}].type");
            let message = format!("Unsupported '{at}': '{}'; only 'text' is read.", truncated(kind));
            return Err(InferenceError::unsupported(at, message));
        }
    }
    Ok(())
}

fn says_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

impl MessageIn {
    /// Converts message `i` to the form of the serving contract.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`]: the message lacks a required field, or has a field that its role does not allow.
    pub fn to_chat(&self, i: usize) -> Result<ChatMessage, InferenceError> {
        let at = |field: &str| format!("messages[{i}].{field}");
        let missing = |field: &str| {
            let message = format!("Missing required parameter: '{}'.", at(field));
            InferenceError::Invalid { param: Some(at(field)), code: "missing_required_parameter", message }
        };
        let misplaced = |field: &str, role: &str| {
            let message = format!("Invalid '{}': it only goes with the role '{role}'.", at(field));
            Err(InferenceError::invalid(at(field), message))
        };
        match self.role.as_str() {
            "tool" if self.tool_call_id.is_none() => return Err(missing("tool_call_id")),
            "tool" => {}
            _ if self.tool_call_id.is_some() => return misplaced("tool_call_id", "tool"),
            _ => {}
        }
        if self.tool_calls.is_some() && self.role != "assistant" {
            return misplaced("tool_calls", "assistant");
        }
        if let Some(id) = self.tool_call_id.as_ref().filter(|id| id.len() > CALL_ID_BYTES) {
            return Err(too_long(at("tool_call_id"), id, CALL_ID_BYTES));
        }
        if let Some(name) = self.name.as_ref().filter(|name| name.len() > SPEAKER_BYTES) {
            return Err(too_long(at("name"), name, SPEAKER_BYTES));
        }
        let content = match &self.content {
            Some(Content::Text(text)) => Some(text.clone()),
            Some(Content::Parts(parts)) => Some(parts.iter().map(|part| part.text.as_str()).collect()),
            None if self.tool_calls.is_some() => None,
            None => return Err(missing("content")),
        };
        Ok(ChatMessage {
            role: if self.role == "developer" { "system".to_owned() } else { self.role.clone() },
            content,
            name: self.name.clone(),
            tool_calls: self.tool_calls.as_deref().map(|calls| read_calls(i, calls)).transpose()?,
            tool_call_id: self.tool_call_id.clone(),
        })
    }
}

fn too_long(at: String, text: &str, most: usize) -> InferenceError {
    let message = format!("Invalid '{at}': {} bytes; at most {most} are allowed.", text.len());
    InferenceError::invalid(at, message)
}

/// Converts tool calls to the form that chat templates read, with the arguments as JSON objects.
fn read_calls(i: usize, calls: &[CallIn]) -> Result<Value, InferenceError> {
    if calls.len() > MOST_CALLS {
        let at = format!("messages[{i}].tool_calls");
        let message = format!("Invalid '{at}': {} calls; at most {MOST_CALLS} are allowed.", calls.len());
        return Err(InferenceError::invalid(at, message));
    }
    let read = |(j, call): (usize, &CallIn)| {
        if call.r#type != "function" {
            let at = format!("messages[{i}].tool_calls[{j}].type");
            return Err(InferenceError::unsupported(
                &at,
                format!("Unsupported '{at}': '{}'; allowed: function.", truncated(&call.r#type)),
            ));
        }
        if call.id.len() > CALL_ID_BYTES {
            return Err(too_long(format!("messages[{i}].tool_calls[{j}].id"), &call.id, CALL_ID_BYTES));
        }
        let text = if call.function.arguments.trim().is_empty() { "{}" } else { &call.function.arguments };
        let at = || format!("messages[{i}].tool_calls[{j}].function.arguments");
        let arguments: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            let at = at();
            InferenceError::invalid(&at, format!("Invalid '{at}': it must be a JSON object: {error}."))
        })?;
        let arguments = Value::Object(arguments);
        let depth = depth_of(&arguments);
        if depth > ARGUMENTS_DEPTH {
            let at = at();
            let message = format!("Invalid '{at}': nested {depth} deep; at most {ARGUMENTS_DEPTH} levels are allowed.");
            return Err(InferenceError::invalid(&at, message));
        }
        let function = json!({"name": call.function.name, "arguments": arguments});
        Ok(json!({"id": call.id, "type": "function", "function": function}))
    };
    calls.iter().enumerate().map(read).collect()
}
