//! The output format and the tools of a response, and their translation to those of a chat.

use attune_domain::text::message_text::truncated;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::error::InferenceError;

/// The options of the text.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextOptions {
    /// The format of the text, enforced while tokens are sampled. Defaults to `{"type": "text"}`.
    #[serde(default)]
    pub format: TextFormat,
}

/// The format of the text.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextFormat {
    /// The type of the format: `text`, `json_object` or `json_schema`.
    #[schema(example = "json_schema")]
    pub r#type: String,
    /// The name of the schema: letters, digits, `_` and `-`; at most 64. Requires the type `json_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A human-readable description of the schema, which has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON schema. Requires the type `json_schema`, whose default is any object.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// If `true`, a schema with keywords that cannot be enforced is refused; otherwise such keywords are ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

impl Default for TextFormat {
    fn default() -> Self {
        Self { r#type: "text".into(), name: None, description: None, schema: None, strict: None }
    }
}

impl TextFormat {
    /// Returns a chat's `response_format`.
    #[must_use]
    pub fn to_chat(&self) -> Value {
        let fields = [
            ("name", self.name.as_deref().map(Value::from)),
            ("description", self.description.as_deref().map(Value::from)),
            ("schema", self.schema.clone()),
            ("strict", self.strict.map(Value::from)),
        ];
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let schema: Map<String, Value> = fields.collect();
        match self.r#type.as_str() {
            kind @ "json_schema" => json!({"type": kind, "json_schema": schema}),
            kind if schema.is_empty() => json!({ "type": kind }),
            kind => json!({"type": kind, "json_schema": schema}),
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseTool {
    /// The type of the tool, always `function`.
    #[schema(example = "function")]
    pub r#type: String,
    /// The name of the function: letters, digits, `_` and `-`; at most 64.
    pub name: String,
    /// The description of the function, which the model reads.
    pub description: Option<String>,
    /// The JSON schema of the arguments. Defaults to any object.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// If `true`, the arguments always match the schema, and a schema with keywords that cannot be enforced is refused.
    /// Defaults to `false`.
    #[serde(default)]
    pub strict: Option<bool>,
}

impl ResponseTool {
    /// Returns the tool in the format of a chat's request. Chat templates render it with its keys in this order.
    #[must_use]
    pub fn to_chat(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        if let Some(parameters) = &self.parameters {
            function["parameters"] = parameters.clone();
        }
        if let Some(strict) = self.strict {
            function["strict"] = strict.into();
        }
        json!({"type": "function", "function": function})
    }
}

/// Checks tool `i` before it is parsed: removes fields that are `null`, and refuses OpenAI's built-in tools.
///
/// # Errors
/// [`InferenceError::Invalid`].
pub fn check_tool(i: usize, tool: &mut Value) -> Result<(), InferenceError> {
    let Some(fields) = tool.as_object_mut() else { return Ok(()) };
    fields.retain(|_, value| !value.is_null());
    match fields.get("type").and_then(Value::as_str) {
        Some(kind) if kind != "function" => {
            let at = format!("tools[{i}].type");
            let message = format!("Unsupported '{at}': '{}'; allowed: function.", truncated(kind));
            Err(InferenceError::unsupported(at, message))
        }
        _ => Ok(()),
    }
}

/// Returns a chat's `tool_choice`.
///
/// # Errors
/// [`InferenceError::Invalid`]: it is neither a mode nor a function.
pub fn tool_choice_to_chat(choice: &Value) -> Result<Value, InferenceError> {
    if let Some(mode) = choice.as_str() {
        return Ok(mode.into());
    }
    let fields = choice.as_object();
    let field = |name: &str| fields.and_then(|fields| fields.get(name)).and_then(Value::as_str);
    match (field("type"), field("name")) {
        (Some("function"), Some(name)) if fields.is_some_and(|fields| fields.len() == 2) => {
            Ok(json!({"type": "function", "function": {"name": name}}))
        }
        _ => {
            let message = "Unsupported 'tool_choice': allowed: none, auto, required, or {\"type\": \"function\", \
                           \"name\": …}.";
            Err(InferenceError::unsupported("tool_choice", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_tools_become_those_of_a_chat() {
        let format = |value: Value| serde_json::from_value::<TextFormat>(value).unwrap().to_chat();
        assert_eq!(format(json!({"type": "text"})), json!({"type": "text"}));
        let schema = json!({"type": "object"});
        assert_eq!(
            format(json!({"type": "json_schema", "name": "a", "schema": schema, "strict": true})),
            json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": true}})
        );
        let tool: ResponseTool =
            serde_json::from_value(json!({"type": "function", "name": "f", "parameters": schema})).unwrap();
        let want = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
        assert_eq!(tool.to_chat(), want);
        let named = tool_choice_to_chat(&json!({"type": "function", "name": "f"})).unwrap();
        assert_eq!(named, json!({"type": "function", "function": {"name": "f"}}));
        assert_eq!(tool_choice_to_chat(&json!("auto")).unwrap(), json!("auto"));
        for choice in [json!({"type": "allowed_tools", "mode": "auto", "tools": []}), json!(3), json!({})] {
            assert!(tool_choice_to_chat(&choice).is_err(), "{choice}");
        }
    }

    #[test]
    fn a_built_in_tool_is_refused() {
        let error = check_tool(1, &mut json!({"type": "web_search"})).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some("tools[1].type"));
    }
}
