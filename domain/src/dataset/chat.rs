//! Chat rows: messages, and the tools that the assistant may call. The format is OpenAI's for fine-tuning.

use serde_json::Value;

use super::{
    MAX_MESSAGES, Message, Role, Row,
    json::{Fields, Json, non_null},
    tool_calls::{self, call_ids},
};

/// Parses the fields of a chat row.
pub(super) fn chat(fields: Fields) -> Result<Row, String> {
    let (mut list, mut tools, mut parallel_tool_calls) = (None, None, None);
    for (name, value) in non_null(fields) {
        match (name.as_str(), value) {
            ("messages", Json::List(messages)) => list = Some(messages),
            ("messages", other) => return Err(format!("messages: must be a list; found {}", other.kind())),
            ("tools", value) => tools = tool_calls::tools(value)?,
            ("parallel_tool_calls", Json::Bool(yes)) => parallel_tool_calls = Some(yes),
            ("parallel_tool_calls", other) => {
                return Err(format!("parallel_tool_calls: must be true or false; found {}", other.kind()));
            }
            ("functions", Json::List(list)) if list.is_empty() => {}
            ("functions", _) => return Err("functions: the older format is not supported; use 'tools'".into()),
            _ => {
                let allowed = "a chat row has only 'messages', 'tools', 'parallel_tool_calls'";
                return Err(format!("{name}: unknown field; {allowed}"));
            }
        }
    }
    let messages = checked_chat(messages("messages", list.unwrap_or_default())?)?;
    Ok(Row::Chat { messages, tools, parallel_tool_calls })
}

/// Parses the list of messages at `place` in its row.
pub(super) fn messages(place: &str, list: Vec<Json>) -> Result<Vec<Message>, String> {
    if list.len() > MAX_MESSAGES {
        return Err(format!("{place}: {} is above the {MAX_MESSAGES} of one chat; split it", list.len()));
    }
    list.into_iter()
        .enumerate()
        .map(|(i, value)| message(value).map_err(|reason| format!("{place}[{i}]{reason}")))
        .collect()
}

/// Checks that a chat has a trained message, and ends with the assistant's.
pub(super) fn checked_chat(messages: Vec<Message>) -> Result<Vec<Message>, String> {
    match messages.last() {
        Some(_) if messages.len() > MAX_MESSAGES => {
            return Err(format!("messages: {} is above the {MAX_MESSAGES} of one chat; split it", messages.len()));
        }
        None => return Err("messages: the list is empty".into()),
        Some(last) if last.role != Role::Assistant => {
            return Err(format!("the last message must be the assistant's; it is the {}'s", last.role.as_str()));
        }
        Some(_) if !messages.iter().any(Message::is_trained) => {
            return Err("nothing to train: every assistant message has weight 0".into());
        }
        Some(_) => {}
    }
    check_results(&messages)?;
    Ok(messages)
}

/// Checks that each tool message responds to an earlier call.
fn check_results(messages: &[Message]) -> Result<(), String> {
    let (mut called, mut ids) = (false, Vec::new());
    for (i, message) in messages.iter().enumerate() {
        called |= message.tool_calls.is_some();
        ids.extend(message.tool_calls.iter().flat_map(call_ids));
        if message.role == Role::Tool && !called {
            return Err(format!("messages[{i}]: a tool message responds to a call, but no earlier message makes one"));
        }
        if let Some(id) = message.tool_call_id.as_deref().filter(|id| !ids.contains(id)) {
            return Err(format!("messages[{i}].tool_call_id: '{id}' is not the ID of an earlier call"));
        }
    }
    Ok(())
}

/// The parsed fields of a message.
#[derive(Default)]
struct Parts {
    role: Option<Role>,
    content: Option<String>,
    weight: Option<u8>,
    name: Option<String>,
    tool_calls: Option<Value>,
    tool_call_id: Option<String>,
}

/// Parses a message. An error starts with `.field: …` or `: …`; the caller prepends the message's position.
pub(super) fn message(value: Json) -> Result<Message, String> {
    let Json::Object(fields) = value else {
        return Err(format!(": must be an object; found {}", value.kind()));
    };
    let mut parts = Parts::default();
    for (field, value) in non_null(fields) {
        match (field.as_str(), value) {
            ("role", Json::Text(word)) => parts.role = Some(role_named(&word)?),
            ("content", value) => parts.content = Some(content(value)?),
            ("name", Json::Text(text)) => parts.name = Some(text),
            ("tool_call_id", Json::Text(text)) => parts.tool_call_id = Some(text),
            ("weight", value) => match value.whole() {
                Some(weight @ (0 | 1)) => parts.weight = Some(u8::from(weight == 1)),
                _ => return Err(".weight: must be 0 or 1".into()),
            },
            ("tool_calls" | "annotations", Json::List(list)) if list.is_empty() => {}
            ("tool_calls", value) => parts.tool_calls = Some(tool_calls::calls(value)?),
            ("function_call", _) => {
                return Err(".function_call: the older format is not supported; use 'tool_calls'".into());
            }
            ("role" | "name" | "tool_call_id", other) => {
                return Err(format!(".{field}: must be a string; found {}", other.kind()));
            }
            _ => {
                let allowed = "role, content, name, weight, tool_calls, tool_call_id";
                return Err(format!(".{field}: unknown field; allowed: {allowed}"));
            }
        }
    }
    parts.checked()
}

impl Parts {
    fn checked(self) -> Result<Message, String> {
        let Self { role, content, weight, name, tool_calls, tool_call_id } = self;
        let role = role.ok_or(": 'role' is missing")?;
        if role != Role::Assistant && weight.is_some() {
            return Err(".weight: only assistant messages have a weight".into());
        }
        if role != Role::Assistant && tool_calls.is_some() {
            return Err(".tool_calls: only assistant messages make calls".into());
        }
        if role != Role::Tool && tool_call_id.is_some() {
            return Err(".tool_call_id: only tool messages answer calls".into());
        }
        if content.is_none() && tool_calls.is_none() {
            return Err(": 'content' is missing".into());
        }
        if role == Role::Assistant && tool_calls.is_none() && content.as_deref() == Some("") {
            return Err(".content: an assistant message must not be empty".into());
        }
        Ok(Message { role, content, weight, name, tool_calls, tool_call_id })
    }
}

/// Parses a string or a list of text parts, which are concatenated without a separator, as in chat requests.
fn content(value: Json) -> Result<String, String> {
    let parts = match value {
        Json::Text(text) => return Ok(text),
        Json::List(parts) => parts,
        other => return Err(format!(".content: must be a string or a list of text parts; found {}", other.kind())),
    };
    let mut whole = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        whole += &text_part(part).map_err(|reason| format!(".content[{i}]{reason}"))?;
    }
    Ok(whole)
}

fn text_part(part: Json) -> Result<String, String> {
    let Json::Object(fields) = part else {
        return Err(format!(": must be an object; found {}", part.kind()));
    };
    let (mut kind, mut text, mut other) = (None, None, None);
    for (name, value) in non_null(fields) {
        match (name.as_str(), value) {
            ("type", Json::Text(word)) => kind = Some(word),
            ("text", Json::Text(words)) => text = Some(words),
            ("type" | "text", value) => return Err(format!(".{name}: must be a string; found {}", value.kind())),
            _ => other = Some(name),
        }
    }
    // The type is checked first: its error is more helpful than that of an unknown field.
    match kind.as_deref() {
        Some("text") => {}
        Some(kind) => return Err(format!(".type: '{kind}' is not supported; only 'text' is read")),
        None => return Err(": 'type' is missing".into()),
    }
    if let Some(name) = other {
        return Err(format!(".{name}: unknown field; allowed: type, text"));
    }
    text.ok_or_else(|| ": 'text' is missing".into())
}

fn role_named(word: &str) -> Result<Role, String> {
    match word {
        // OpenAI's newer name for `system`; chat requests accept it too.
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => Err(".role: 'function': the older format is not supported; use 'tool'".into()),
        _ => Err(format!(".role: '{word}' is unknown; allowed: system, developer, user, assistant, tool")),
    }
}
