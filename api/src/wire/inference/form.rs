//! What an answer must look like, and what it may call: `response_format`, `tools`, `tool_choice`.

use std::collections::HashSet;

use attune_domain::serve::{Form, Tool, ToolChoice, Tools};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{error::ApiError, http::path_id};

/// The most tools in one request. Source: OpenAI's API reference.
const MOST_TOOLS: usize = 128;
/// The longest name of a tool or a schema. Source: OpenAI's API reference.
const LONGEST_NAME: usize = 64;

/// The longest list of tools, in bytes of JSON.
const TOOLS_BYTES: usize = 256 << 10;
/// The longest schema, in bytes of JSON.
const SCHEMA_BYTES: usize = 64 << 10;
/// How deep a schema may be nested, in lists and objects of its JSON.
const SCHEMA_DEPTH: usize = 48;

/// What an answer's text must be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[schema(example = "json_schema")]
    pub r#type: String,
    /// Only with the type `json_schema`.
    pub json_schema: Option<JsonSchemaIn>,
}

/// A schema that an answer is of.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchemaIn {
    /// Letters, digits, `_` and `-`; at most 64.
    pub name: String,
    /// For people; it changes nothing.
    pub description: Option<String>,
    /// A JSON schema; any object if it is left out.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// What of the schema cannot be enforced is refused; passed over if it is not strict.
    pub strict: Option<bool>,
}

/// A tool that an answer may call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolIn {
    /// Always `function`.
    #[schema(example = "function")]
    pub r#type: String,
    /// What is called.
    pub function: FunctionIn,
}

/// What may be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionIn {
    /// Letters, digits, `_` and `-`; at most 64.
    pub name: String,
    /// The model reads it.
    pub description: Option<String>,
    /// The JSON schema of its arguments; any object if it is left out.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Its arguments are always of the schema; what of it cannot be enforced is refused.
    pub strict: Option<bool>,
}

/// Which tools are called: `none`, `auto`, `required`, or one by its name.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = ToolChoiceSchema)]
pub struct ToolChoiceIn(pub ToolChoice);

/// How a choice may be given.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum ToolChoiceSchema {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// One tool.
    Named(NamedTool),
}

/// A tool by its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    /// Always `function`.
    #[schema(example = "function")]
    pub r#type: String,
    /// Which.
    pub function: ToolName,
}

/// A tool's name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolName {
    /// As `tools` has it.
    pub name: String,
}

impl<'de> Deserialize<'de> for ToolChoiceIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let asked = Value::deserialize(deserializer)?;
        let choice = match asked.as_str() {
            Some("none") => ToolChoice::None,
            Some("auto") => ToolChoice::Auto,
            Some("required") => ToolChoice::Required,
            Some(other) => {
                return Err(Error::custom(format!(
                    "'{}'; allowed: none, auto, required, or a tool",
                    path_id::shown(other)
                )));
            }
            None => {
                let named: NamedTool = serde_json::from_value(asked).map_err(Error::custom)?;
                if named.r#type != "function" {
                    return Err(Error::custom(format!("type '{}'; allowed: function", path_id::shown(&named.r#type))));
                }
                ToolChoice::Named { name: named.function.name }
            }
        };
        Ok(Self(choice))
    }
}

impl ResponseFormat {
    /// The same in a replica's words.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn form(&self) -> Result<Form, ApiError> {
        match (self.r#type.as_str(), &self.json_schema) {
            ("json_schema", Some(asked)) => {
                check_name("response_format.json_schema.name", &asked.name)?;
                let strict = asked.strict == Some(true);
                let schema = asked.schema.clone().unwrap_or_else(|| json!({"type": "object"}));
                check_schema("response_format.json_schema.schema", &schema)?;
                Ok(Form::Schema { schema, strict })
            }
            ("json_schema", None) => Err(ApiError::Invalid {
                param: Some("response_format.json_schema".into()),
                code: "missing_required_parameter",
                message: "Missing required parameter: 'response_format.json_schema'.".into(),
            }),
            ("text" | "json_object", Some(_)) => {
                let at = "response_format.json_schema";
                Err(ApiError::invalid(at, format!("Invalid '{at}': it only goes with the type 'json_schema'.")))
            }
            ("text", None) => Ok(Form::Free),
            ("json_object", None) => Ok(Form::Json),
            (other, _) => {
                let message = format!(
                    "Invalid 'response_format.type': '{}'; allowed: text, json_object, json_schema.",
                    path_id::shown(other)
                );
                Err(ApiError::invalid("response_format.type", message))
            }
        }
    }
}

/// Tools in a replica's words. `shown` is what templates show of them.
///
/// # Errors
/// [`ApiError::Invalid`]: a tool is none, or `choice` names no tool.
pub fn tools(
    given: &[ToolIn],
    shown: Value,
    choice: Option<&ToolChoiceIn>,
    parallel: Option<bool>,
) -> Result<Option<Tools>, ApiError> {
    if given.is_empty() {
        return match choice {
            None | Some(ToolChoiceIn(ToolChoice::None)) => Ok(None),
            Some(_) => Err(ApiError::invalid("tool_choice", "'tool_choice' only goes with 'tools'.")),
        };
    }
    if given.len() > MOST_TOOLS {
        let message = format!("Invalid 'tools': {} tools; at most {MOST_TOOLS} are taken.", given.len());
        return Err(ApiError::invalid("tools", message));
    }
    let definitions = given.iter().enumerate().map(definition).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(twice) = definitions.iter().position(|tool| !names.insert(&tool.name)) {
        let at = format!("tools[{twice}].function.name");
        return Err(ApiError::invalid(&at, format!("Invalid '{at}': '{}' is there twice.", definitions[twice].name)));
    }
    let choice = choice.map_or(ToolChoice::Auto, |choice| choice.0.clone());
    if let ToolChoice::Named { name } = &choice
        && !names.contains(name)
    {
        return Err(ApiError::invalid(
            "tool_choice",
            format!("Invalid 'tool_choice': '{}' is none of 'tools'.", path_id::shown(name)),
        ));
    }
    let bytes = shown.to_string().len();
    if bytes > TOOLS_BYTES {
        let message = format!("Invalid 'tools': {bytes} bytes of JSON; at most {TOOLS_BYTES} are allowed.");
        return Err(ApiError::invalid("tools", message));
    }
    Ok(Some(Tools { shown, definitions, choice, parallel: parallel.unwrap_or(true) }))
}

fn definition((i, tool): (usize, &ToolIn)) -> Result<Tool, ApiError> {
    if tool.r#type != "function" {
        let at = format!("tools[{i}].type");
        let shown = path_id::shown(&tool.r#type);
        return Err(ApiError::unsupported(&at, format!("Unsupported '{at}': '{shown}'; allowed: function.")));
    }
    let function = &tool.function;
    check_name(&format!("tools[{i}].function.name"), &function.name)?;
    if let Some(schema) = &function.parameters {
        check_schema(&format!("tools[{i}].function.parameters"), schema)?;
    }
    let (name, parameters) = (function.name.clone(), function.parameters.clone());
    Ok(Tool { name, parameters, strict: function.strict == Some(true) })
}

fn check_name(at: &str, name: &str) -> Result<(), ApiError> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain && (1..=LONGEST_NAME).contains(&name.len()) {
        return Ok(());
    }
    let shown = path_id::shown(name);
    let message =
        format!("Invalid '{at}': '{shown}'; letters, digits, '_' and '-' are taken, from 1 to {LONGEST_NAME}.");
    Err(ApiError::invalid(at, message))
}

/// llguidance reads its own wishes out of a schema; they are not for users.
fn check_schema(at: &str, schema: &Value) -> Result<(), ApiError> {
    if !schema.is_object() {
        return Err(ApiError::invalid(at, format!("Invalid '{at}': a JSON schema is an object.")));
    }
    if schema.get("x-guidance").is_some() {
        let at = format!("{at}.x-guidance");
        return Err(ApiError::unsupported(&at, format!("Unknown keyword: '{at}'.")));
    }
    let depth = depth_of(schema);
    if depth > SCHEMA_DEPTH {
        let message = format!("Invalid '{at}': nested {depth} deep; at most {SCHEMA_DEPTH} levels are allowed.");
        return Err(ApiError::invalid(at, message));
    }
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES {
        let message = format!("Invalid '{at}': {bytes} bytes of JSON; at most {SCHEMA_BYTES} are allowed.");
        return Err(ApiError::invalid(at, message));
    }
    Ok(())
}

/// Levels of lists and objects; the parser of bodies has a bound of its own, so the recursion has one.
fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}
