//! Tools and tool calls in chat rows, in the form that chat templates expect.
//!
//! Fields are kept unchanged and in order, since templates print them; as transformers' `apply_chat_template` does.
//! Only two things change: a call's arguments in OpenAI's form, JSON text, become the object that the text encodes, as
//! transformers expects; and a null in a schema where JSON Schema does not allow one is dropped.

use serde_json::{Map, Value};

use super::json::{Fields, Json, non_null};

/// The maximum number of tools of one row. Source: OpenAI's API reference.
pub const MAX_TOOLS: usize = 128;

/// The maximum number of calls of one message.
pub const MAX_TOOL_CALLS: usize = 128;

/// The maximum length of a tool's name, in bytes. Source: OpenAI's API reference.
pub const MAX_TOOL_NAME_BYTES: usize = 64;

/// The keywords of JSON Schema whose value may be null, or contain nulls that mean null.
const NULL_IS_A_VALUE: [&str; 4] = ["default", "const", "enum", "examples"];

/// Parses `tools`; an empty list is the same as none.
pub(super) fn tools(value: Json) -> Result<Option<Value>, String> {
    let list = match value {
        Json::List(list) if list.is_empty() => return Ok(None),
        Json::List(list) => list,
        other => return Err(format!("tools: must be a list; found {}", other.kind())),
    };
    if list.len() > MAX_TOOLS {
        return Err(format!("tools: {} is above the {MAX_TOOLS} of one row", list.len()));
    }
    let mut names = std::collections::HashSet::new();
    let mut read = Vec::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        let (name, tool) = tool(value).map_err(|reason| format!("tools[{i}]{reason}"))?;
        if !names.insert(name.clone()) {
            return Err(format!("tools[{i}].function.name: '{name}' is defined twice"));
        }
        read.push(tool);
    }
    Ok(Some(Value::Array(read)))
}

/// Parses a tool and returns its name, too. An error starts with `.field: …` or `: …`.
fn tool(value: Json) -> Result<(String, Value), String> {
    let (mut kept, function) = typed_function(value, &["type", "function"])?;
    let mut name = None;
    let mut shown = Map::new();
    for (field, value) in non_null(function) {
        match (field.as_str(), &value) {
            ("name", Json::Text(text)) => name = Some(checked_name(text)?),
            ("description", Json::Text(_)) | ("strict", Json::Bool(_)) | ("parameters", Json::Object(_)) => {}
            // transformers passes a tool's return schema to models that are trained to read it.
            ("return", Json::Object(_)) => {}
            ("name" | "description", other) => {
                return Err(format!(".function.{field}: must be a string; found {}", other.kind()));
            }
            ("parameters" | "return", other) => {
                return Err(format!(".function.{field}: must be a JSON schema, an object; found {}", other.kind()));
            }
            ("strict", other) => {
                return Err(format!(".function.strict: must be true or false; found {}", other.kind()));
            }
            _ => {
                let allowed = "name, description, parameters, strict, return";
                return Err(format!(".function.{field}: unknown field; allowed: {allowed}"));
            }
        }
        shown.insert(field, without_nulls(value.into()));
    }
    let name = name.ok_or(".function: 'name' is missing")?;
    kept.insert("function".into(), shown.into());
    Ok((name, kept.into()))
}

/// Parses an assistant's `tool_calls`. An error starts with `.tool_calls…`.
pub(super) fn calls(value: Json) -> Result<Value, String> {
    let Json::List(list) = value else {
        return Err(format!(".tool_calls: must be a list; found {}", value.kind()));
    };
    if list.len() > MAX_TOOL_CALLS {
        return Err(format!(".tool_calls: {} is above the {MAX_TOOL_CALLS} of one message", list.len()));
    }
    let read = |(i, value)| call(value).map_err(|reason| format!(".tool_calls[{i}]{reason}"));
    list.into_iter().enumerate().map(read).collect()
}

fn call(value: Json) -> Result<Value, String> {
    let (mut kept, function) = typed_function(value, &["id", "type", "function"])?;
    let (mut name, mut called) = (false, Map::new());
    for (field, value) in non_null(function) {
        let value = match (field.as_str(), value) {
            ("name", Json::Text(text)) => {
                name = true;
                checked_name(&text)?.into()
            }
            ("arguments", value) => arguments(value)?,
            ("name", other) => return Err(format!(".function.name: must be a string; found {}", other.kind())),
            _ => return Err(format!(".function.{field}: unknown field; allowed: name, arguments")),
        };
        called.insert(field, value);
    }
    if !name {
        return Err(".function: 'name' is missing".into());
    }
    // A call without `arguments` is the same as one with `{}`.
    called.entry("arguments").or_insert_with(|| Map::new().into());
    kept.insert("function".into(), called.into());
    Ok(kept.into())
}

/// Returns the fields around `function`, which keeps its position among them, and those of `function`.
fn typed_function(value: Json, allowed: &[&str]) -> Result<(Map<String, Value>, Fields), String> {
    let Json::Object(fields) = value else {
        return Err(format!(": must be an object; found {}", value.kind()));
    };
    let (mut kept, mut function) = (Map::new(), None);
    for (field, value) in non_null(fields) {
        match (field.as_str(), value) {
            (name, _) if !allowed.contains(&name) => {
                return Err(format!(".{field}: unknown field; allowed: {}", allowed.join(", ")));
            }
            ("function", Json::Object(fields)) => {
                kept.insert(field, Value::Null);
                function = Some(fields);
            }
            ("function", other) => return Err(format!(".function: must be an object; found {}", other.kind())),
            ("type", Json::Text(kind)) if kind != "function" => {
                return Err(format!(".type: '{kind}' is not supported; allowed: function"));
            }
            (_, Json::Text(text)) => drop(kept.insert(field, text.into())),
            (_, other) => return Err(format!(".{field}: must be a string; found {}", other.kind())),
        }
    }
    let function = function.ok_or(": 'function' is missing")?;
    Ok((kept, function))
}

/// Parses a call's arguments: an object, or the JSON text of one.
fn arguments(value: Json) -> Result<Value, String> {
    let wrong = |why: String| format!(".function.arguments: must be a JSON object, or its text; {why}");
    match value {
        Json::Object(fields) => Ok(Json::Object(fields).into()),
        Json::Text(text) if text.trim().is_empty() => Ok(Map::new().into()),
        Json::Text(text) => match serde_json::from_str(&text) {
            Ok(object @ Json::Object(_)) => Ok(object.into()),
            Ok(other) => Err(wrong(format!("it is the text of {}", other.kind()))),
            Err(error) => Err(wrong(error.to_string())),
        },
        other => Err(wrong(format!("found {}", other.kind()))),
    }
}

fn checked_name(name: &str) -> Result<String, String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if plain && (1..=MAX_TOOL_NAME_BYTES).contains(&name.len()) {
        return Ok(name.to_owned());
    }
    let shown: String = name.chars().take(MAX_TOOL_NAME_BYTES).collect();
    Err(format!(".function.name: '{shown}'; it must be 1 to {MAX_TOOL_NAME_BYTES} letters, digits, '_' and '-'"))
}

/// Drops nulls where a schema cannot have one: tables fill the fields that only some of their tools have with null.
#[must_use]
pub fn without_nulls(schema: Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let cleaned = |(name, value): (String, Value)| {
                if NULL_IS_A_VALUE.contains(&name.as_str()) {
                    return Some((name, value));
                }
                (!value.is_null()).then(|| (name, without_nulls(value)))
            };
            fields.into_iter().filter_map(cleaned).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// Returns the IDs of a message's calls.
pub(super) fn call_ids(calls: &Value) -> impl Iterator<Item = &str> {
    calls.as_array().into_iter().flatten().filter_map(|call| call.get("id")?.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parse_row;
    use super::*;

    fn row(messages: Value, tools: Value) -> Result<Value, String> {
        let line = json!({"messages": messages, "tools": tools}).to_string();
        parse_row(1, line.as_bytes()).map(|row| serde_json::to_value(row).unwrap()).map_err(|defect| defect.message)
    }

    fn calling(calls: Value) -> Result<Value, String> {
        row(json!([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}]), Value::Null)
            .map(|row| row["messages"][1]["tool_calls"].clone())
    }

    fn offering(tools: Value) -> Result<Value, String> {
        row(json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), tools)
            .map(|row| row["tools"].clone())
    }

    #[test]
    fn calls_keep_their_order_and_get_objects_as_arguments() {
        let given = json!([
            {"id": "c1", "type": "function", "function": {"arguments": "{\"z\": 1.0, \"a\": [null]}", "name": "f"}},
            {"function": {"name": "g", "arguments": {"x": null}}, "id": null},
            {"function": {"name": "h"}}, {"function": {"name": "h", "arguments": " "}},
        ]);
        let kept = concat!(
            r#"[{"id":"c1","type":"function","function":{"arguments":{"z":1.0,"a":[null]},"name":"f"}},"#,
            r#"{"function":{"name":"g","arguments":{"x":null}}},{"function":{"name":"h","arguments":{}}},"#,
            r#"{"function":{"name":"h","arguments":{}}}]"#
        );
        assert_eq!(calling(given).unwrap().to_string(), kept);
    }

    #[test]
    fn tools_keep_all_that_templates_print_but_nulls_that_a_schema_cannot_have() {
        let given = json!([{"type": "function", "function": {
            "parameters": {"type": "object", "properties": {
                "n": {"enum": [null, 1], "default": null, "items": null}, "m": null}},
            "name": "f", "description": null, "strict": true}}]);
        let kept = concat!(
            r#"[{"type":"function","function":{"parameters":{"type":"object","properties":"#,
            r#"{"n":{"enum":[null,1],"default":null}}},"name":"f","strict":true}}]"#
        );
        assert_eq!(offering(given).unwrap().to_string(), kept);
        assert_eq!(offering(json!([])).unwrap(), Value::Null);
    }

    #[test]
    fn what_is_no_tool_and_no_call_is_named() {
        let f = |more: Value| json!([{"type": "function", "function": more}]);
        for (tools, reason) in [
            (json!([7]), "tools[0]: must be an object; found a number"),
            (json!([{"type": "function"}]), "tools[0]: 'function' is missing"),
            (json!([{"name": "f"}]), "tools[0].name: unknown field; allowed: type, function"),
            (json!([{"type": "web_search", "function": {}}]), "tools[0].type: 'web_search' is not supported"),
            (f(json!({})), "tools[0].function: 'name' is missing"),
            (f(json!({"name": "a b"})), "tools[0].function.name: 'a b'; it must be 1 to 64 letters"),
            (f(json!({"name": "f", "parameters": "{}"})), "tools[0].function.parameters: must be a JSON schema"),
            (f(json!({"name": "f", "x": 1})), "tools[0].function.x: unknown field"),
            (
                json!([{"function": {"name": "f"}}, {"function": {"name": "f"}}]),
                "tools[1].function.name: 'f' is defined twice",
            ),
        ] {
            let refused = offering(tools).unwrap_err();
            assert!(refused.starts_with(reason), "{refused}");
        }
        for (calls, reason) in [
            (json!({}), "messages[1].tool_calls: must be a list; found an object"),
            (json!([{"id": "c"}]), "messages[1].tool_calls[0]: 'function' is missing"),
            (
                f(json!({"name": "f", "arguments": "{"})),
                "messages[1].tool_calls[0].function.arguments: must be a JSON object, or",
            ),
            (
                f(json!({"name": "f", "arguments": "[1]"})),
                "messages[1].tool_calls[0].function.arguments: must be a JSON object",
            ),
            (
                f(json!({"name": "f", "arguments": "{\"a\": 1, \"a\": 2}"})),
                "messages[1].tool_calls[0].function.arguments: must",
            ),
            (
                f(json!({"name": "f", "arguments": 7})),
                "messages[1].tool_calls[0].function.arguments: must be a JSON object",
            ),
            (f(json!({"arguments": {}})), "messages[1].tool_calls[0].function: 'name' is missing"),
            (json!([{"index": 0, "function": {"name": "f"}}]), "messages[1].tool_calls[0].index: unknown field"),
        ] {
            let refused = calling(calls).unwrap_err();
            assert!(refused.starts_with(reason), "{refused}");
        }
    }

    #[test]
    fn a_tools_message_answers_a_call_before_it() {
        let call =
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]});
        let last = json!({"role": "assistant", "content": "b"});
        let chat = |between: &[Value]| {
            row(
                [&[json!({"role": "user", "content": "a"})], between, std::slice::from_ref(&last)].concat().into(),
                Value::Null,
            )
        };
        let result = |id: Value| json!({"role": "tool", "content": "4", "tool_call_id": id});
        assert!(chat(&[call.clone(), result("c1".into())]).is_ok());
        assert!(chat(&[call.clone(), json!({"role": "tool", "content": "4", "name": "f"})]).is_ok());
        for (between, reason) in [
            (
                vec![result(Value::Null)],
                "messages[1]: a tool message responds to a call, but no earlier message makes one",
            ),
            (vec![result("c1".into()), call.clone()], "messages[1]: a tool message"),
            (
                vec![call.clone(), result("c2".into())],
                "messages[2].tool_call_id: 'c2' is not the ID of an earlier call",
            ),
            (
                vec![json!({"role": "user", "content": "a", "tool_call_id": "c1"})],
                "messages[1].tool_call_id: only tool messages",
            ),
            (
                vec![json!({"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]})],
                "messages[1].tool_calls: only",
            ),
            (
                vec![call, json!({"role": "tool", "tool_call_id": "c1", "content": "4", "weight": 1})],
                "messages[2].weight: only assistant",
            ),
        ] {
            let refused = chat(&between).unwrap_err();
            assert!(refused.starts_with(reason), "{refused}");
        }
    }

    #[test]
    fn limit_tools_and_calls_of_a_row_are_bounded() {
        let tools = |count| Value::from_iter((0..count).map(|i| json!({"function": {"name": format!("f{i}")}})));
        assert!(offering(tools(MAX_TOOLS)).is_ok());
        assert_eq!(offering(tools(MAX_TOOLS + 1)).unwrap_err(), "tools: 129 is above the 128 of one row");
        let named = |bytes| json!([{"function": {"name": "f".repeat(bytes)}}]);
        assert!(offering(named(MAX_TOOL_NAME_BYTES)).is_ok());
        assert!(offering(named(MAX_TOOL_NAME_BYTES + 1)).unwrap_err().contains("it must be 1 to 64 letters"));
        assert!(calling(tools(MAX_TOOL_CALLS)).is_ok());
        let refused = calling(tools(MAX_TOOL_CALLS + 1)).unwrap_err();
        assert_eq!(refused, "messages[1].tool_calls: 129 is above the 128 of one message");
    }
}
