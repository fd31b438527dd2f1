//! Common shapes of datasets: Alpaca and ShareGPT rows are converted to chats, OpenAI's preference rows are kept. An
//! unknown field is a defect, as in all rows.

use super::{
    Message, Role, Row,
    chat::{checked_chat, message, messages},
    json::{Fields, Json, non_null},
};

/// The hint for rows whose shape does not support tools.
const AS_CHAT: &str = "tools are supported in chat rows only; use 'messages' and 'tools'";

/// Parses `{"instruction": …, "input": …, "output": …}`: the user message is the instruction and, after an empty line,
/// the input.
pub(super) fn alpaca(fields: Fields) -> Result<Row, String> {
    let (mut instruction, mut input, mut output, mut system) = (None, None, None, None);
    for (name, value) in fields {
        let place = match name.as_str() {
            "instruction" => &mut instruction,
            "input" => &mut input,
            "output" => &mut output,
            "system" => &mut system,
            _ => {
                return Err(format!(
                    "{name}: unknown field; an alpaca row has only instruction, input, output, system"
                ));
            }
        };
        let Json::Text(text) = value else {
            return Err(format!("{name}: must be a string; found {}", value.kind()));
        };
        *place = Some(text);
    }
    let instruction = instruction.ok_or("'instruction' is missing")?;
    let output = output.ok_or("'output' is missing")?;
    for (name, text) in [("instruction", &instruction), ("output", &output)] {
        if text.is_empty() {
            return Err(format!("{name}: must not be empty"));
        }
    }
    let mut turns = Vec::with_capacity(3);
    if let Some(system) = system.filter(|text| !text.is_empty()) {
        turns.push(Message::new(Role::System, system));
    }
    let asked = match input.filter(|text| !text.is_empty()) {
        Some(input) => format!("{instruction}\n\n{input}"),
        None => instruction,
    };
    turns.push(Message::new(Role::User, asked));
    turns.push(Message::new(Role::Assistant, output));
    Ok(Row::chat(turns))
}

/// Parses `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}`.
pub(super) fn sharegpt(fields: Fields) -> Result<Row, String> {
    let (mut list, mut turns) = (Vec::new(), Vec::new());
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("conversations", Json::List(given)) => list = given,
            ("conversations", other) => return Err(format!("conversations: must be a list; found {}", other.kind())),
            ("system", Json::Text(text)) if text.is_empty() => {}
            ("system", Json::Text(text)) => turns.push(Message::new(Role::System, text)),
            // An ID of the row, not used.
            ("id", Json::Text(_) | Json::Number(_)) => {}
            ("system" | "id", other) => return Err(format!("{name}: must be a string; found {}", other.kind())),
            ("tools", Json::List(tools)) if tools.is_empty() => {}
            ("tools", _) => return Err(format!("tools: {AS_CHAT}")),
            _ => return Err(format!("{name}: unknown field; a ShareGPT row has only conversations, system, id")),
        }
    }
    if list.is_empty() {
        return Err("conversations: the list is empty".into());
    }
    for (i, value) in list.into_iter().enumerate() {
        turns.push(turn(value).map_err(|reason| format!("conversations[{i}]{reason}"))?);
    }
    checked_chat(turns).map(Row::chat)
}

/// Parses one turn. An error starts with `.field: …` or `: …`, as in [`message`].
fn turn(value: Json) -> Result<Message, String> {
    let Json::Object(fields) = value else {
        return Err(format!(": must be an object; found {}", value.kind()));
    };
    let mut said = Vec::with_capacity(fields.len());
    for (name, value) in non_null(fields) {
        match (name.as_str(), value) {
            ("from", Json::Text(speaker)) => said.push(("role".into(), Json::Text(spoken_by(&speaker)?.into()))),
            ("value", text @ Json::Text(_)) => said.push(("content".into(), text)),
            ("weight", weight) => said.push(("weight".into(), weight)),
            ("from" | "value", other) => return Err(format!(".{name}: must be a string; found {}", other.kind())),
            _ => return Err(format!(".{name}: unknown field; allowed: from, value, weight")),
        }
    }
    for (field, named) in [("role", "from"), ("content", "value")] {
        if !said.iter().any(|(name, _)| name == field) {
            return Err(format!(": '{named}' is missing"));
        }
    }
    message(Json::Object(said))
}

fn spoken_by(speaker: &str) -> Result<&'static str, String> {
    match speaker {
        "system" => Ok("system"),
        "human" | "user" => Ok("user"),
        "gpt" | "assistant" | "chatgpt" | "model" => Ok("assistant"),
        "tool" | "function_call" | "observation" => Err(format!(".from: '{speaker}': {AS_CHAT}")),
        _ => {
            Err(format!(".from: '{speaker}' is unknown; allowed: system, human, user, gpt, assistant, chatgpt, model"))
        }
    }
}

/// Parses OpenAI's `{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}`.
pub(super) fn preference(fields: Fields) -> Result<Row, String> {
    let (mut input, mut preferred, mut other) = (None, None, None);
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("input", Json::Object(given)) => input = Some(asked(given)?),
            ("input", value) => return Err(format!("input: must be an object; found {}", value.kind())),
            ("preferred_output", value) => preferred = Some(answer("preferred_output", value)?),
            ("non_preferred_output", value) => other = Some(answer("non_preferred_output", value)?),
            _ => {
                return Err(format!(
                    "{name}: unknown field; a preference row has only input, preferred_output, non_preferred_output"
                ));
            }
        }
    }
    Ok(Row::Preference {
        input: input.ok_or("'input' is missing")?,
        preferred: preferred.ok_or("'preferred_output' is missing")?,
        non_preferred: other.ok_or("'non_preferred_output' is missing")?,
    })
}

fn asked(fields: Fields) -> Result<Vec<Message>, String> {
    let mut asked = Vec::new();
    for (name, value) in non_null(fields) {
        match (name.as_str(), value) {
            ("messages", Json::List(list)) => asked = messages("input.messages", list)?,
            ("messages", other) => return Err(format!("input.messages: must be a list; found {}", other.kind())),
            // Without tools it has no effect.
            ("parallel_tool_calls", Json::Bool(_)) => {}
            ("tools", Json::List(tools)) if tools.is_empty() => {}
            ("tools", _) => return Err("input.tools: preference rows with tools are not supported".into()),
            _ => return Err(format!("input.{name}: unknown field; allowed: messages, tools, parallel_tool_calls")),
        }
    }
    if asked.is_empty() {
        return Err("input.messages: the list is empty".into());
    }
    Ok(asked)
}

fn answer(name: &str, value: Json) -> Result<Vec<Message>, String> {
    let Json::List(list) = value else {
        return Err(format!("{name}: must be a list; found {}", value.kind()));
    };
    let answer = messages(name, list)?;
    match answer.first() {
        None => Err(format!("{name}: the list is empty")),
        Some(_) if answer.iter().any(|message| message.role != Role::Assistant) => {
            Err(format!("{name}: every message must be the assistant's"))
        }
        Some(_) => Ok(answer),
    }
}
