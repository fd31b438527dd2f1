//! The input of a response: a string or items, and their translation to messages of a chat.

use attune_domain::text::message_text::truncated;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::InferenceError;

/// The types of items, each with the fields that it requires.
const TYPES: [(&str, &[&str]); 3] = [
    ("message", &["role", "content"]),
    ("function_call", &["call_id", "name", "arguments"]),
    ("function_call_output", &["call_id", "output"]),
];
/// The roles of messages.
const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];
/// The types of content parts: those of requests, and those of responses that a caller sends back.
const PARTS: [&str; 2] = ["input_text", "output_text"];

/// The input of a response: a string, which is a message of the user, or items.
#[derive(Debug, Clone, ToSchema)]
#[serde(untagged)]
pub enum ResponseInput {
    /// A message of the user.
    Text(String),
    /// Items.
    Items(Vec<InputItem>),
}

/// An item of the input: a message, a function call of an earlier response, or the output of one.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputItem {
    /// The type: `message` (the default), `function_call` or `function_call_output`.
    pub r#type: Option<String>,
    /// The item's ID in the response that contained it. It has no effect.
    pub id: Option<String>,
    /// The item's status in the response that contained it. It has no effect.
    pub status: Option<String>,
    /// The role of a message: `user`, `assistant`, `system` or `developer` (the same).
    pub role: Option<String>,
    /// The content of a message.
    pub content: Option<InputContent>,
    /// The ID of a function call.
    pub call_id: Option<String>,
    /// The name of the called function.
    pub name: Option<String>,
    /// The arguments of a function call, as a JSON object in a string.
    pub arguments: Option<String>,
    /// The output of a function call.
    pub output: Option<InputContent>,
}

/// Content: a string, or parts, which are concatenated without a separator.
#[derive(Debug, Clone, ToSchema)]
#[serde(untagged)]
pub enum InputContent {
    /// A string.
    Text(String),
    /// Parts.
    Parts(Vec<InputPart>),
}

/// A content part.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputPart {
    /// The type: `input_text`, or `output_text` in a message of an earlier response.
    #[schema(example = "input_text")]
    pub r#type: String,
    /// The text.
    pub text: String,
    /// The annotations in an earlier response, an empty list.
    #[schema(value_type = Option<Vec<Object>>)]
    pub annotations: Option<Vec<Value>>,
    /// The log probabilities in an earlier response. They have no effect.
    #[schema(value_type = Option<Vec<Object>>)]
    pub logprobs: Option<Vec<Value>>,
}

struct InputVisitor;

impl<'de> serde::de::Visitor<'de> for InputVisitor {
    type Value = ResponseInput;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string or a list of items")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ResponseInput, E> {
        Ok(ResponseInput::Text(text.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<ResponseInput, A::Error> {
        Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(ResponseInput::Items)
    }
}

impl<'de> Deserialize<'de> for ResponseInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct ContentVisitor;

impl<'de> serde::de::Visitor<'de> for ContentVisitor {
    type Value = InputContent;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string or a list of text parts")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<InputContent, E> {
        Ok(InputContent::Text(text.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<InputContent, A::Error> {
        Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(InputContent::Parts)
    }
}

impl<'de> Deserialize<'de> for InputContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

impl InputContent {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

/// Checks item `i` before it is parsed: removes fields that are `null`, and refuses, with a specific message, what
/// OpenAI's items may contain and is unsupported here.
///
/// # Errors
/// [`InferenceError::Invalid`].
pub fn check_item(i: usize, item: &mut Value) -> Result<(), InferenceError> {
    let Some(fields) = item.as_object_mut() else { return Ok(()) };
    let at = |field: &str| format!("input[{i}].{field}");
    fields.retain(|_, value| !value.is_null());
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("message");
    let Some((kind, required)) = TYPES.iter().find(|(name, _)| *name == kind) else {
        let allowed = TYPES.map(|(name, _)| name).join(", ");
        let message = format!("Unsupported '{}': '{}'; allowed: {allowed}.", at("type"), truncated(kind));
        return Err(InferenceError::unsupported(at("type"), message));
    };
    if let Some(field) = required.iter().find(|field| !fields.contains_key(**field)) {
        let message = format!("Missing required parameter: '{}'.", at(field));
        return Err(InferenceError::Invalid { param: Some(at(field)), code: "missing_required_parameter", message });
    }
    let mut others = TYPES.iter().flat_map(|(_, fields)| fields.iter()).filter(|field| !required.contains(*field));
    if let Some(field) = others.find(|field| fields.contains_key(**field)) {
        let message = format!("Invalid '{}': it does not go with the type '{kind}'.", at(field));
        return Err(InferenceError::invalid(at(field), message));
    }
    if let Some(role) = fields.get("role").and_then(Value::as_str).filter(|role| !ROLES.contains(role)) {
        let allowed = ROLES.join(", ");
        let message = format!("Invalid '{}': '{}'; allowed: {allowed}.", at("role"), truncated(role));
        return Err(InferenceError::invalid(at("role"), message));
    }
    for field in ["content", "output"] {
        for (j, part) in fields.get(field).and_then(Value::as_array).into_iter().flatten().enumerate() {
            check_part(&format!("{}[{j}]", at(field)), part)?;
        }
    }
    Ok(())
}

fn check_part(at: &str, part: &Value) -> Result<(), InferenceError> {
    if let Some(kind) = part.get("type").and_then(Value::as_str).filter(|kind| !PARTS.contains(kind)) {
        let (at, allowed) = (format!("{at}.type"), PARTS.join(", "));
        let message = format!("Unsupported '{at}': '{}'; allowed: {allowed}.", truncated(kind));
        return Err(InferenceError::unsupported(at, message));
    }
    if part.get("annotations").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
        let at = format!("{at}.annotations");
        let message = format!("Unsupported '{at}': no model here reads annotations.");
        return Err(InferenceError::unsupported(at, message));
    }
    Ok(())
}

/// The messages of a chat, and the names of their fields in the request.
#[derive(Debug, Default)]
pub struct Translated {
    /// The messages, in the format of a chat's request.
    pub messages: Vec<Value>,
    /// Pairs of [`crate::wire::param_names::ParamNames`].
    pub names: Vec<(String, String)>,
    /// The pairs of tool calls, which count before those of the messages that contain them.
    calls: Vec<(String, String)>,
}

impl Translated {
    /// Translates an input whose items [`check_item`] has checked. Calls that follow a message of the assistant become
    /// tool calls of that message, as the model wrote them.
    #[must_use]
    pub fn new(instructions: Option<&str>, input: &ResponseInput) -> Self {
        let mut all = Self::default();
        if let Some(text) = instructions {
            all.push("instructions", "instructions", json!({"role": "system", "content": text}));
        }
        match input {
            ResponseInput::Text(text) => all.push("input", "input", json!({"role": "user", "content": text})),
            ResponseInput::Items(items) => {
                for (i, item) in items.iter().enumerate() {
                    all.add(&format!("input[{i}]"), item);
                }
            }
        }
        all.names.push(("messages".into(), "input".into()));
        all.names = std::mem::take(&mut all.calls).into_iter().chain(all.names).collect();
        all
    }

    fn push(&mut self, at: &str, content_at: &str, message: Value) {
        let i = self.messages.len();
        self.names.push((format!("messages[{i}].content"), content_at.to_owned()));
        self.names.push((format!("messages[{i}]"), at.to_owned()));
        self.messages.push(message);
    }

    fn add(&mut self, at: &str, item: &InputItem) {
        let text = |content: &Option<InputContent>| content.as_ref().map(InputContent::text).unwrap_or_default();
        match item.r#type.as_deref() {
            Some("function_call") => self.add_call(at, item),
            Some("function_call_output") => {
                let i = self.messages.len();
                self.names.push((format!("messages[{i}].tool_call_id"), format!("{at}.call_id")));
                let message = json!({"role": "tool", "tool_call_id": item.call_id, "content": text(&item.output)});
                self.push(at, &format!("{at}.output"), message);
            }
            _ => {
                let message = json!({"role": item.role, "content": text(&item.content)});
                self.push(at, &format!("{at}.content"), message);
            }
        }
    }

    fn add_call(&mut self, at: &str, item: &InputItem) {
        let function = json!({"name": item.name, "arguments": item.arguments});
        let call = json!({"id": item.call_id, "type": "function", "function": function});
        if self.messages.last().is_none_or(|message| message["role"] != "assistant") {
            self.push(at, at, json!({"role": "assistant"}));
        }
        let i = self.messages.len() - 1;
        let calls = &mut self.messages[i]["tool_calls"];
        let j = calls.as_array().map_or(0, Vec::len);
        match calls.as_array_mut() {
            Some(calls) => calls.push(call),
            None => *calls = json!([call]),
        }
        let named = |field: &str, name: &str| (format!("messages[{i}].tool_calls[{j}]{field}"), format!("{at}{name}"));
        self.calls.extend([named(".function", ""), named(".id", ".call_id"), named("", "")]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(items: Value) -> Translated {
        Translated::new(Some("Be brief."), &serde_json::from_value(items).unwrap())
    }

    #[test]
    fn items_become_the_messages_of_a_chat() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let all = translated(json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "c", "annotations": []}]},
            call("1"),
            call("2"),
            {"type": "function_call_output", "call_id": "1", "output": "d"},
            call("3"),
        ]));
        let called = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(
            Value::Array(all.messages),
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "ab"},
                {"role": "assistant", "content": "c", "tool_calls": [called("1"), called("2")]},
                {"role": "tool", "tool_call_id": "1", "content": "d"},
                {"role": "assistant", "tool_calls": [called("3")]},
            ])
        );
        let name = |of: &str| all.names.iter().find(|(from, _)| from == of).map(|(_, to)| to.as_str());
        assert_eq!(name("messages[2].tool_calls[1].function"), Some("input[3]"));
        assert_eq!(name("messages[3].tool_call_id"), Some("input[4].call_id"));
        assert_eq!(name("messages[1].content"), Some("input[0].content"));
    }

    #[test]
    fn what_is_wrong_with_an_item_is_named() {
        for (item, param) in [
            (json!({"type": "item_reference", "id": "msg_1"}), "input[2].type"),
            (json!({"type": "reasoning", "summary": []}), "input[2].type"),
            (json!({"role": "user"}), "input[2].content"),
            (json!({"role": "tool", "content": "a"}), "input[2].role"),
            (json!({"role": "user", "content": "a", "call_id": "1"}), "input[2].call_id"),
            (json!({"type": "function_call", "call_id": "1", "name": "f"}), "input[2].arguments"),
            (json!({"role": "user", "content": [{"type": "input_image"}]}), "input[2].content[0].type"),
            (
                json!({"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [1]}]}),
                "input[2].content[0].annotations",
            ),
        ] {
            let error = check_item(2, &mut item.clone()).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{item}: {}", error.message);
        }
        let mut unset = json!({"role": "user", "content": "a", "caller": null});
        check_item(0, &mut unset).unwrap();
        assert_eq!(unset, json!({"role": "user", "content": "a"}));
    }
}
