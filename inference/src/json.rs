//! JSON values whose errors name the field at fault by its path, as in `messages[0].role`.

use serde::de::DeserializeOwned;

use crate::{error::InferenceError, strict_json::Strict};

/// Deserializes a JSON value that has already been parsed.
///
/// # Errors
/// [`InferenceError::Invalid`] with the field's path.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, InferenceError> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|e| refusal(e.path().to_string(), e.inner()))
}

/// Converts a serde error at `path`. Only its message contains the name of a missing or unknown field.
#[must_use]
pub fn refusal(path: String, error: &serde_json::Error) -> InferenceError {
    let whole = error.to_string();
    let reason = whole.split(" at line ").next().unwrap_or(&whole);
    let path = if path == "." { String::new() } else { path };
    if !error.is_data() {
        let message = format!("The body is not valid JSON: {whole}.");
        return InferenceError::Invalid { param: None, code: "invalid_json", message };
    }
    let quoted = || reason.split('`').nth(1).unwrap_or("").to_owned();
    if reason.starts_with("missing field") {
        let param = if path.is_empty() { quoted() } else { format!("{path}.{}", quoted()) };
        let message = format!("Missing required parameter: '{param}'.");
        return InferenceError::Invalid { param: Some(param), code: "missing_required_parameter", message };
    }
    if reason.starts_with("unknown field") {
        let param = if path.is_empty() { quoted() } else { path };
        let allowed =
            reason.split_once(", ").map_or(String::new(), |(_, rest)| format!("; {}", rest.replace('`', "'")));
        let message = format!("Unknown parameter: '{param}'{allowed}.");
        return InferenceError::Invalid { param: Some(param), code: "unknown_parameter", message };
    }
    let reason = reason.replace('`', "'");
    if path.is_empty() {
        return InferenceError::Invalid {
            param: None,
            code: "invalid_body",
            message: format!("Invalid body: {reason}."),
        };
    }
    let code = if reason.starts_with("invalid type") { "invalid_type" } else { "invalid_value" };
    InferenceError::Invalid { message: format!("Invalid '{path}': {reason}."), param: Some(path), code }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        rank: u32,
    }

    #[test]
    fn a_field_is_named_by_its_path_and_a_list_is_no_object() {
        assert_eq!(from_value::<Vec<Inner>>(json!([{"rank": 1}])).unwrap(), [Inner { rank: 1 }]);
        for (value, param, code) in [
            (json!([{"rank": 1}, {}]), "[1].rank", "missing_required_parameter"),
            (json!([{"rank": 1, "rnak": 1}]), "[0].rnak", "unknown_parameter"),
            (json!([{"rank": "1"}]), "[0].rank", "invalid_type"),
            (json!([[1]]), "[0]", "invalid_type"),
        ] {
            let error = from_value::<Vec<Inner>>(value).unwrap_err().body().error;
            assert_eq!((error.param.as_deref(), error.code), (Some(param), Some(code)), "{}", error.message);
        }
    }
}
