//! Tools for models whose chat template does not support them: described in the system message, called in JSON, with
//! results in user messages.
//!
//! The format is the same for all such models, in chats and in training:
//!
//! - The system message (inserted if there is none) ends with `instructions`: the tools' schemas, one per line, and
//!   how to call a tool.
//! - A call is an answer `{"name": "…", "arguments": {…}}` and nothing else.
//! - The result of a call is a user message, `Result of NAME: …`. Consecutive results, and the user message after them,
//!   are merged into one message, since many templates require the roles to alternate.
//!
//! If a template refuses a system message, the instructions go before the user's first message.

use std::collections::HashMap;

use serde_json::Value;

use crate::{error::EncodeError, template::Turn};

/// A message of the generic format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainTurn {
    /// The role: `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
    /// The author's name.
    pub name: Option<String>,
}

impl<'a> From<&'a PlainTurn> for Turn<'a> {
    fn from(turn: &'a PlainTurn) -> Self {
        Self { name: turn.name.as_deref(), ..Self::new(&turn.role, &turn.content) }
    }
}

/// Returns whether messages need the generic format if the template does not support tools.
#[must_use]
pub fn concerns(turns: &[Turn<'_>], tools: Option<&Value>) -> bool {
    tools.is_some() || turns.iter().any(|turn| turn.tool_calls.is_some() || turn.role == "tool")
}

/// Returns the text that describes the tools to the model. `tools` is OpenAI's list.
#[must_use]
pub fn instructions(tools: &Value) -> String {
    let functions = tools.as_array().into_iter().flatten();
    let lines: Vec<String> = functions.map(|tool| tool.get("function").unwrap_or(tool).to_string()).collect();
    format!(
        "You can call these functions:\n{}\n\nTo call one, answer with nothing but a JSON object: \
         {{\"name\": the function's name, \"arguments\": an object of its parameters}}. Otherwise answer in words.",
        lines.join("\n")
    )
}

/// Renders the messages in the generic format with `render`: with the instructions in the system message, or before the
/// user's first message if the template refuses a system message.
///
/// # Errors
/// As `render`.
pub fn rendered(
    turns: &[Turn<'_>],
    tools: Option<&Value>,
    render: impl Fn(&[Turn<'_>]) -> Result<String, EncodeError>,
) -> Result<String, EncodeError> {
    let plain = plain_turns(turns);
    let render = |turns: &[PlainTurn]| render(&turns.iter().map(Turn::from).collect::<Vec<_>>());
    let Some(instructions) = tools.map(instructions) else { return render(&plain) };
    let mut with_system = plain.clone();
    match with_system.first_mut() {
        Some(first) if first.role == "system" => first.content = joined(&first.content, &instructions),
        _ => with_system.insert(0, PlainTurn { role: "system".into(), content: instructions.clone(), name: None }),
    }
    match render(&with_system) {
        Err(EncodeError::Template(why)) if plain.first().is_some_and(|first| first.role == "user") => {
            let mut in_user = plain;
            in_user[0].content = joined(&instructions, &in_user[0].content);
            render(&in_user).map_err(|_| EncodeError::Template(why))
        }
        rendered => rendered,
    }
}

/// Converts calls and results to text.
#[must_use]
pub fn plain_turns(turns: &[Turn<'_>]) -> Vec<PlainTurn> {
    let mut names: HashMap<String, String> = HashMap::new();
    let mut plain: Vec<PlainTurn> = Vec::with_capacity(turns.len());
    let mut after_result = false;
    for turn in turns {
        let (role, content) = match turn.role {
            "tool" => {
                let id = turn.tool_call_id.unwrap_or_default();
                let name = turn.name.or_else(|| names.get(id).map(String::as_str)).unwrap_or(id);
                ("user", format!("Result of {name}: {}", turn.content.unwrap_or_default()))
            }
            role => (role, called(turn, &mut names)),
        };
        match plain.last_mut() {
            Some(last) if after_result && role == "user" => last.content = joined(&last.content, &content),
            _ => plain.push(PlainTurn { role: role.to_owned(), content, name: turn.name.map(str::to_owned) }),
        }
        after_result = turn.role == "tool" || (after_result && role == "user");
    }
    plain
}

/// Returns the text of an assistant's message, with its calls in the generic format, and records the names of calls by
/// their IDs.
fn called(turn: &Turn<'_>, names: &mut HashMap<String, String>) -> String {
    let mut content = turn.content.unwrap_or_default().to_owned();
    for call in turn.tool_calls.and_then(Value::as_array).into_iter().flatten() {
        let function = call.get("function").unwrap_or(call);
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        if let Some(id) = call.get("id").and_then(Value::as_str) {
            names.insert(id.to_owned(), name.to_owned());
        }
        let empty = Value::Object(serde_json::Map::new());
        let arguments = function.get("arguments").unwrap_or(&empty);
        let line = format!("{{\"name\": {}, \"arguments\": {arguments}}}", Value::from(name));
        content = if content.is_empty() { line } else { format!("{content}\n{line}") };
    }
    content
}

fn joined(first: &str, second: &str) -> String {
    if first.is_empty() { second.to_owned() } else { format!("{first}\n\n{second}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(turns: &[Turn<'_>]) -> Result<String, EncodeError> {
        Ok(turns.iter().map(|turn| format!("[{}] {}\n", turn.role, turn.content.unwrap_or_default())).collect())
    }

    #[test]
    fn calls_and_results_become_text_that_takes_turns() {
        let calls = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}}]);
        let result = |id, content| Turn { tool_call_id: Some(id), ..Turn::new("tool", content) };
        let turns = [
            Turn::new("user", "go"),
            Turn { tool_calls: Some(&calls), ..Turn::new("assistant", "") },
            result("1", "one"),
            result("2", "two"),
            Turn::new("user", "and?"),
        ];
        assert!(concerns(&turns, None) && !concerns(&turns[..1], None));
        assert_eq!(
            rendered(&turns, None, shown).unwrap(),
            "[user] go\n[assistant] {\"name\": \"f\", \"arguments\": {\"x\":1}}\n{\"name\": \"g\", \"arguments\": {}}\n\
             [user] Result of f: one\n\nResult of g: two\n\nand?\n"
        );
    }

    #[test]
    fn tools_are_listed_by_the_system_or_by_the_user_where_the_template_has_no_system() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let told = instructions(&tools);
        assert!(told.starts_with("You can call these functions:\n{\"name\":\"f\"}\n\nTo call one"), "{told}");
        let turns = [Turn::new("user", "go")];
        assert_eq!(rendered(&turns, Some(&tools), shown).unwrap(), format!("[system] {told}\n[user] go\n"));
        let with_system = [Turn::new("system", "Be kind."), turns[0]];
        let want = format!("[system] Be kind.\n\n{told}\n[user] go\n");
        assert_eq!(rendered(&with_system, Some(&tools), shown).unwrap(), want);
        let refuses = |turns: &[Turn<'_>]| match turns[0].role {
            "system" => Err(EncodeError::Template("no system".into())),
            _ => shown(turns),
        };
        assert_eq!(rendered(&turns, Some(&tools), refuses).unwrap(), format!("[user] {told}\n\ngo\n"));
        assert!(rendered(&with_system, Some(&tools), refuses).is_err());
    }
}
