//! `chat_template_kwargs`: variables that a job, a preview or a chat passes to the chat template, such as
//! `enable_thinking`. The names are those of vLLM and transformers' `apply_chat_template`.
//!
//! Values are scalars and lists of scalars: for objects, every place that stores them would have to preserve the order
//! of keys.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bad_field::BadField;

/// The maximum number of variables of one request.
pub const MAX_TEMPLATE_KWARGS: usize = 16;

/// The maximum length of the JSON text of all variables together, in bytes.
pub const MAX_TEMPLATE_KWARGS_BYTES: usize = 4096;

/// The maximum length of a variable's name, in bytes.
pub const MAX_TEMPLATE_KWARG_NAME_BYTES: usize = 64;

/// The field's name in requests.
const PARAM: &str = "chat_template_kwargs";

/// Reserved names: the variables and functions that every template has, and parameters of transformers'
/// `apply_chat_template`, which would never reach the template there. Names of special tokens end in [`TOKEN`].
const RESERVED: [&str; 22] = [
    "messages",
    "conversation",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "loop",
    "self",
];

/// The suffix of the names of special tokens, as in `bos_token`.
const TOKEN: &str = "_token";

/// Checked variables of a chat template, by name. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateKwargs(Map<String, Value>);

impl TemplateKwargs {
    /// Checks the variables of a request.
    ///
    /// # Errors
    /// [`BadField`]: too many or too large variables, a reserved or invalid name, or a value that is neither a scalar
    /// nor a list of scalars.
    pub fn check(given: &Map<String, Value>) -> Result<Self, BadField> {
        let bad = |given: String, allowed: String| BadField { param: PARAM, given, allowed };
        if given.len() > MAX_TEMPLATE_KWARGS {
            let allowed = format!("an object of at most {MAX_TEMPLATE_KWARGS} variables");
            return Err(bad(format!("{} variables", given.len()), allowed));
        }
        for (name, value) in given {
            check_name(name).map_err(|allowed| bad(format!("the name '{}'", truncated(name)), allowed))?;
            if !is_scalar(value) && !value.as_array().is_some_and(|list| list.iter().all(is_scalar)) {
                let allowed = "a string, a number, a boolean, null, or a list of those".into();
                return Err(bad(format!("'{name}'"), allowed));
            }
        }
        let bytes = serde_json::to_vec(given).map_or(usize::MAX, |json| json.len());
        if bytes > MAX_TEMPLATE_KWARGS_BYTES {
            return Err(bad(format!("{bytes} bytes"), format!("at most {MAX_TEMPLATE_KWARGS_BYTES} bytes of JSON")));
        }
        Ok(Self(given.clone()))
    }

    /// Returns whether no variable is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The variables by name.
    #[must_use]
    pub const fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// Checks a variable's name. The error states the allowed names.
fn check_name(name: &str) -> Result<(), String> {
    let identifier = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    if name.is_empty() || name.len() > MAX_TEMPLATE_KWARG_NAME_BYTES || !identifier {
        return Err(format!(
            "1 to {MAX_TEMPLATE_KWARG_NAME_BYTES} letters, digits and '_', not beginning with a digit"
        ));
    }
    if RESERVED.contains(&name) || name.ends_with(TOKEN) {
        return Err("a name that the chat template does not reserve, as it does 'messages' and 'bos_token'".into());
    }
    Ok(())
}

fn is_scalar(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

fn truncated(name: &str) -> String {
    name.chars().take(MAX_TEMPLATE_KWARG_NAME_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(given: &Value) -> Result<TemplateKwargs, String> {
        TemplateKwargs::check(given.as_object().unwrap()).map_err(|bad| bad.to_string())
    }

    #[test]
    fn variables_are_kept_by_name() {
        let kwargs = check(&json!({"enable_thinking": false, "date_string": "26 Jul 2024", "a": [1, null]})).unwrap();
        assert_eq!(kwargs.as_map().keys().collect::<Vec<_>>(), ["enable_thinking", "date_string", "a"]);
        let stored: TemplateKwargs = serde_json::from_value(serde_json::to_value(&kwargs).unwrap()).unwrap();
        assert_eq!(stored, kwargs);
        assert!(check(&json!({})).unwrap().is_empty());
    }

    #[test]
    fn reserved_names_and_objects_are_refused() {
        for (given, reason) in [
            (json!({"messages": []}), "the name 'messages' is not allowed; it must be a name that the chat template"),
            (json!({"bos_token": "a"}), "the name 'bos_token'"),
            (json!({"image_token": "a"}), "the name 'image_token'"),
            (json!({"namespace": 1}), "the name 'namespace'"),
            (json!({"add_generation_prompt": true}), "the name 'add_generation_prompt'"),
            (json!({"enable-thinking": true}), "the name 'enable-thinking' is not allowed; it must be 1 to 64 letters"),
            (json!({"": true}), "the name ''"),
            (json!({"9": true}), "the name '9'"),
            (json!({"a": {"b": 1}}), "'a' is not allowed; it must be a string, a number"),
            (json!({"a": [[1]]}), "'a' is not allowed"),
        ] {
            let refused = check(&given).unwrap_err();
            assert!(refused.starts_with(&format!("chat_template_kwargs: {reason}")), "{refused}");
        }
    }

    #[test]
    fn limit_chat_template_kwargs_are_bounded_in_count_name_and_size() {
        let many = |count| Value::Object((0..count).map(|i| (format!("a{i}"), json!(true))).collect());
        assert!(check(&many(MAX_TEMPLATE_KWARGS)).is_ok());
        assert!(check(&many(MAX_TEMPLATE_KWARGS + 1)).unwrap_err().contains("17 variables is not allowed"));
        let named = |bytes| json!({"a".repeat(bytes): 1});
        assert!(check(&named(MAX_TEMPLATE_KWARG_NAME_BYTES)).is_ok());
        assert!(check(&named(MAX_TEMPLATE_KWARG_NAME_BYTES + 1)).is_err());
        let long = |bytes| json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())});
        assert!(check(&long(MAX_TEMPLATE_KWARGS_BYTES)).is_ok());
        let refused = check(&long(MAX_TEMPLATE_KWARGS_BYTES + 1)).unwrap_err();
        assert!(refused.contains("4097 bytes is not allowed; it must be at most 4096 bytes of JSON"), "{refused}");
    }
}
