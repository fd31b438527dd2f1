//! The required format of an answer and the tools that it may call: `response_format`, `tools`, `tool_choice`.

use std::collections::HashSet;

use attune_domain::{
    serve::{Form, Tool, ToolChoice, Tools},
    text::message_text::truncated,
};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{json_schema::check_schema, structure};
use crate::error::InferenceError;

/// The maximum number of tools in one request. Source: OpenAI's API reference.
const MOST_TOOLS: usize = 128;
/// The maximum length of a tool's or a schema's name. Source: OpenAI's API reference.
const LONGEST_NAME: usize = 64;

/// The maximum size of the list of tools, in bytes of JSON.
const TOOLS_BYTES: usize = 256 << 10;

/// The required format of the answer's text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// The type of the format: `text`, `json_object`, `json_schema` or `grammar`.
    #[schema(example = "json_schema")]
    pub r#type: String,
    /// The schema. Requires the type `json_schema`.
    pub json_schema: Option<JsonSchemaIn>,
    /// The syntax of the grammar: `lark` or `regex`. Requires the type `grammar`.
    pub syntax: Option<String>,
    /// The grammar, whose rule `start` derives the answer, or the regular expression that matches the whole answer.
    /// Requires the type `grammar`.
    pub definition: Option<String>,
}

/// A JSON schema that the answer must match.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchemaIn {
    /// The name of the schema: letters, digits, `_` and `-`; at most 64.
    pub name: String,
    /// A human-readable description, which has no effect.
    pub description: Option<String>,
    /// The JSON schema. Defaults to any object.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// If `true`, a schema with keywords that cannot be enforced is refused; otherwise such keywords are ignored.
    pub strict: Option<bool>,
}

/// A tool that the model may call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolIn {
    /// The type of the tool, always `function`.
    #[schema(example = "function")]
    pub r#type: String,
    /// The function.
    pub function: FunctionIn,
}

/// A function that the model may call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionIn {
    /// The name of the function: letters, digits, `_` and `-`; at most 64.
    pub name: String,
    /// The description of the function, which the model reads.
    pub description: Option<String>,
    /// The JSON schema of the arguments. Defaults to any object.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// If `true`, the arguments always match the schema, and a schema with keywords that cannot be enforced is refused.
    pub strict: Option<bool>,
}

/// The tool choice: `none`, `auto`, `required`, or one tool by its name.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = ToolChoiceSchema)]
pub struct ToolChoiceIn(pub ToolChoice);

/// The accepted forms of `tool_choice`.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum ToolChoiceSchema {
    /// A mode: `none`, `auto` or `required`.
    Mode(String),
    /// One tool by its name.
    Named(NamedTool),
}

/// A tool by its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    /// The type of the tool, always `function`.
    #[schema(example = "function")]
    pub r#type: String,
    /// The function to call.
    pub function: ToolName,
}

/// The name of a function.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolName {
    /// The name, as in `tools`.
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
                return Err(Error::custom(format!("'{}'; allowed: none, auto, required, or a tool", truncated(other))));
            }
            None => {
                let named: NamedTool = serde_json::from_value(asked).map_err(Error::custom)?;
                if named.r#type != "function" {
                    return Err(Error::custom(format!("type '{}'; allowed: function", truncated(&named.r#type))));
                }
                ToolChoice::Named { name: named.function.name }
            }
        };
        Ok(Self(choice))
    }
}

impl ResponseFormat {
    /// Converts the format to the form of the serving contract.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`].
    pub fn form(&self) -> Result<Form, InferenceError> {
        let (syntax, definition) = (self.syntax.as_deref(), self.definition.as_deref());
        if self.r#type == "grammar" && self.json_schema.is_none() {
            return structure::grammar(syntax, definition);
        }
        if let Some(name) = syntax.map(|_| "syntax").or_else(|| definition.map(|_| "definition")) {
            let at = format!("response_format.{name}");
            return Err(InferenceError::invalid(&at, format!("Invalid '{at}': it only goes with the type 'grammar'.")));
        }
        match (self.r#type.as_str(), &self.json_schema) {
            ("json_schema", Some(asked)) => {
                check_name("response_format.json_schema.name", &asked.name)?;
                let strict = asked.strict == Some(true);
                let schema = asked.schema.clone().unwrap_or_else(|| json!({"type": "object"}));
                check_schema("response_format.json_schema.schema", &schema)?;
                Ok(Form::Schema { schema, strict })
            }
            ("json_schema", None) => Err(InferenceError::Invalid {
                param: Some("response_format.json_schema".into()),
                code: "missing_required_parameter",
                message: "Missing required parameter: 'response_format.json_schema'.".into(),
            }),
            ("text" | "json_object" | "grammar", Some(_)) => {
                let at = "response_format.json_schema";
                Err(InferenceError::invalid(at, format!("Invalid '{at}': it only goes with the type 'json_schema'.")))
            }
            ("text", None) => Ok(Form::Free),
            ("json_object", None) => Ok(Form::Json),
            (other, _) => {
                let message = format!(
                    "Invalid 'response_format.type': '{}'; allowed: text, json_object, json_schema, grammar.",
                    truncated(other)
                );
                Err(InferenceError::invalid("response_format.type", message))
            }
        }
    }
}

/// Converts tools to the form of the serving contract. `shown` is what chat templates render.
///
/// # Errors
/// [`InferenceError::Invalid`]: a tool is invalid, `choice` names no tool, or the list is too large.
pub fn tools(
    given: &[ToolIn],
    shown: Value,
    choice: Option<&ToolChoiceIn>,
    parallel: Option<bool>,
) -> Result<Option<Tools>, InferenceError> {
    if given.is_empty() {
        return match choice {
            None | Some(ToolChoiceIn(ToolChoice::None)) => Ok(None),
            Some(_) => Err(InferenceError::invalid("tool_choice", "'tool_choice' only goes with 'tools'.")),
        };
    }
    if given.len() > MOST_TOOLS {
        let message = format!("Invalid 'tools': {} tools; at most {MOST_TOOLS} are taken.", given.len());
        return Err(InferenceError::invalid("tools", message));
    }
    let definitions = given.iter().enumerate().map(definition).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(twice) = definitions.iter().position(|tool| !names.insert(&tool.name)) {
        let at = format!("tools[{twice}].function.name");
        return Err(InferenceError::invalid(
            &at,
            format!("Invalid '{at}': '{}' is used twice.", definitions[twice].name),
        ));
    }
    let choice = choice.map_or(ToolChoice::Auto, |choice| choice.0.clone());
    if let ToolChoice::Named { name } = &choice
        && !names.contains(name)
    {
        return Err(InferenceError::invalid(
            "tool_choice",
            format!("Invalid 'tool_choice': '{}' is not in 'tools'.", truncated(name)),
        ));
    }
    let bytes = shown.to_string().len();
    if bytes > TOOLS_BYTES {
        let message = format!("Invalid 'tools': {bytes} bytes of JSON; at most {TOOLS_BYTES} are allowed.");
        return Err(InferenceError::invalid("tools", message));
    }
    Ok(Some(Tools { shown, definitions, choice, parallel: parallel.unwrap_or(true) }))
}

fn definition((i, tool): (usize, &ToolIn)) -> Result<Tool, InferenceError> {
    if tool.r#type != "function" {
        let at = format!("tools[{i}].type");
        let shown = truncated(&tool.r#type);
        return Err(InferenceError::unsupported(&at, format!("Unsupported '{at}': '{shown}'; allowed: function.")));
    }
    let function = &tool.function;
    check_name(&format!("tools[{i}].function.name"), &function.name)?;
    if let Some(schema) = &function.parameters {
        check_schema(&format!("tools[{i}].function.parameters"), schema)?;
    }
    let (name, parameters) = (function.name.clone(), function.parameters.clone());
    Ok(Tool { name, parameters, strict: function.strict == Some(true) })
}

fn check_name(at: &str, name: &str) -> Result<(), InferenceError> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain && (1..=LONGEST_NAME).contains(&name.len()) {
        return Ok(());
    }
    let shown = truncated(name);
    let message =
        format!("Invalid '{at}': '{shown}'; letters, digits, '_' and '-' are taken, from 1 to {LONGEST_NAME}.");
    Err(InferenceError::invalid(at, message))
}
