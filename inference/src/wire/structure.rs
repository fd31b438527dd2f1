//! Regular expressions, grammars and choices as the format of an answer: `response_format` of the type `grammar`, in
//! OpenAI's terms for grammars of custom tools, and vLLM's `structured_outputs`.

use attune_domain::{serve::Form, text::message_text::truncated};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{json_schema::check_schema, param_names::ParamNames};
use crate::error::InferenceError;

/// The maximum size of a regular expression or of a Lark grammar, in bytes.
const DEFINITION_BYTES: usize = 16 << 10;
/// The maximum number of texts of a choice.
const MOST_CHOICE_TEXTS: usize = 1000;
/// The maximum size of the texts of a choice together, in bytes.
const CHOICE_BYTES: usize = 32 << 10;

/// The format of the answer's text, in the form of vLLM's clients. Exactly one of the fields is set.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StructuredOutputs {
    /// A regular expression that matches the whole answer.
    #[schema(example = "[0-9]{4}-[0-9]{2}")]
    pub regex: Option<String>,
    /// A Lark grammar, whose rule `start` derives the answer.
    pub grammar: Option<String>,
    /// The texts of which the answer is one: at most 1000.
    pub choice: Option<Vec<String>>,
    /// The JSON schema of the answer, as an object or as its JSON text.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// If `true`, the answer is a JSON object.
    pub json_object: Option<bool>,
}

impl StructuredOutputs {
    /// Converts the format to the form of the serving contract.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`].
    pub fn form(&self) -> Result<Form, InferenceError> {
        let json_object = self.json_object.filter(|wanted| *wanted);
        match (&self.regex, &self.grammar, &self.choice, &self.json, json_object) {
            (Some(pattern), None, None, None, None) => regex("structured_outputs.regex", pattern),
            (None, Some(definition), None, None, None) => lark("structured_outputs.grammar", definition),
            (None, None, Some(texts), None, None) => choice("structured_outputs.choice", texts),
            (None, None, None, Some(schema), None) => json_form("structured_outputs.json", schema),
            (None, None, None, None, Some(_)) => Ok(Form::Json),
            _ => Err(InferenceError::invalid(
                "structured_outputs",
                "Invalid 'structured_outputs': set exactly one of regex, grammar, choice, json and json_object.",
            )),
        }
    }
}

/// Returns the names for errors of a replica, which knows the format as `response_format`, in a request with
/// `structured_outputs`.
pub(crate) fn names() -> ParamNames {
    ParamNames(vec![("response_format".into(), "structured_outputs".into())])
}

/// Returns the form of a grammar in `response_format`.
pub(super) fn grammar(syntax: Option<&str>, definition: Option<&str>) -> Result<Form, InferenceError> {
    let missing = |name: &str| InferenceError::Invalid {
        param: Some(format!("response_format.{name}")),
        code: "missing_required_parameter",
        message: format!("Missing required parameter: 'response_format.{name}'."),
    };
    let syntax = syntax.ok_or_else(|| missing("syntax"))?;
    let definition = definition.ok_or_else(|| missing("definition"))?;
    match syntax {
        "regex" => regex("response_format.definition", definition),
        "lark" => lark("response_format.definition", definition),
        other => {
            let shown = truncated(other);
            let message = format!("Invalid 'response_format.syntax': '{shown}'; allowed: lark, regex.");
            Err(InferenceError::invalid("response_format.syntax", message))
        }
    }
}

fn regex(at: &str, pattern: &str) -> Result<Form, InferenceError> {
    check_definition(at, pattern)?;
    Ok(Form::Regex { pattern: pattern.to_owned() })
}

fn lark(at: &str, definition: &str) -> Result<Form, InferenceError> {
    check_definition(at, definition)?;
    Ok(Form::Lark { definition: definition.to_owned() })
}

fn check_definition(at: &str, definition: &str) -> Result<(), InferenceError> {
    match definition.len() {
        0 => Err(InferenceError::invalid(at, format!("Invalid '{at}': it must not be empty."))),
        1..=DEFINITION_BYTES => Ok(()),
        bytes => {
            let message = format!("Invalid '{at}': {bytes} bytes; at most {DEFINITION_BYTES} are allowed.");
            Err(InferenceError::invalid(at, message))
        }
    }
}

fn choice(at: &str, texts: &[String]) -> Result<Form, InferenceError> {
    let (count, bytes) = (texts.len(), texts.iter().map(String::len).sum::<usize>());
    if count == 0 || count > MOST_CHOICE_TEXTS {
        let message = format!("Invalid '{at}': {count} texts; from 1 to {MOST_CHOICE_TEXTS} are allowed.");
        return Err(InferenceError::invalid(at, message));
    }
    if texts.iter().any(String::is_empty) {
        return Err(InferenceError::invalid(at, format!("Invalid '{at}': a text must not be empty.")));
    }
    if bytes > CHOICE_BYTES {
        let message = format!("Invalid '{at}': {bytes} bytes of texts; at most {CHOICE_BYTES} are allowed.");
        return Err(InferenceError::invalid(at, message));
    }
    Ok(Form::Choice { texts: texts.to_vec() })
}

fn json_form(at: &str, schema: &Value) -> Result<Form, InferenceError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| InferenceError::invalid(at, format!("Invalid '{at}': the text is not JSON: {error}.")))?,
        other => other.clone(),
    };
    check_schema(at, &schema)?;
    Ok(Form::Schema { schema, strict: true })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(body: Value) -> Result<Form, InferenceError> {
        serde_json::from_value::<StructuredOutputs>(body).unwrap().form()
    }

    #[test]
    fn each_form_is_converted() {
        let schema = json!({"type": "integer"});
        for (body, want) in [
            (json!({"regex": "a+"}), Form::Regex { pattern: "a+".into() }),
            (
                json!({"grammar": "start: \"a\"", "json_object": false}),
                Form::Lark { definition: "start: \"a\"".into() },
            ),
            (json!({"choice": ["a", "b"]}), Form::Choice { texts: vec!["a".into(), "b".into()] }),
            (json!({"json": schema}), Form::Schema { schema: schema.clone(), strict: true }),
            (json!({"json": schema.to_string()}), Form::Schema { schema: schema.clone(), strict: true }),
            (json!({"json_object": true}), Form::Json),
        ] {
            assert_eq!(form(body).unwrap(), want);
        }
        assert_eq!(grammar(Some("lark"), Some("x")).unwrap(), Form::Lark { definition: "x".into() });
        assert_eq!(grammar(Some("regex"), Some("x")).unwrap(), Form::Regex { pattern: "x".into() });
    }

    #[test]
    fn limit_of_definitions_and_choices() {
        let text = |length: usize| "x".repeat(length);
        for (most, beyond, param) in [
            (json!({"regex": text(16 << 10)}), json!({"regex": text((16 << 10) + 1)}), "structured_outputs.regex"),
            (
                json!({"grammar": text(16 << 10)}),
                json!({"grammar": text((16 << 10) + 1)}),
                "structured_outputs.grammar",
            ),
            (json!({"choice": vec!["x"; 1000]}), json!({"choice": vec!["x"; 1001]}), "structured_outputs.choice"),
            (
                json!({"choice": [text(32 << 10)]}),
                json!({"choice": [text((32 << 10) + 1)]}),
                "structured_outputs.choice",
            ),
        ] {
            let refused = form(beyond).unwrap_err().body().error;
            assert_eq!(refused.param.as_deref(), Some(param), "{}", refused.message);
            assert!(form(most).is_ok(), "{param}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (json!({}), "structured_outputs"),
            (json!({"regex": "a", "choice": ["a"]}), "structured_outputs"),
            (json!({"regex": ""}), "structured_outputs.regex"),
            (json!({"choice": []}), "structured_outputs.choice"),
            (json!({"choice": [""]}), "structured_outputs.choice"),
            (json!({"json": "{"}), "structured_outputs.json"),
            (json!({"json": [1]}), "structured_outputs.json"),
            (json!({"json": {"x-guidance": {}}}), "structured_outputs.json.x-guidance"),
        ] {
            let refused = form(body.clone()).unwrap_err().body().error;
            assert_eq!(refused.param.as_deref(), Some(param), "{body}");
        }
        let param = |syntax, definition| grammar(syntax, definition).unwrap_err().body().error.param.unwrap();
        assert_eq!(param(None, Some("x")), "response_format.syntax");
        assert_eq!(param(Some("gbnf"), Some("x")), "response_format.syntax");
        assert_eq!(param(Some("lark"), None), "response_format.definition");
    }
}
