//! Fields of OpenAI's request bodies that have no effect on an answer. Their format is checked, and then they are
//! removed. Three of them choose the version that answers a request to an alias.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::metadata;
use crate::{error::InferenceError, json};

/// The names of the ignored string fields.
const IGNORED_TEXTS: [&str; 5] =
    ["user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"];
/// The names of the fields by which the requests to an alias are split between its versions; the first that is set
/// counts.
const SPLIT_KEYS: [&str; 3] = ["prompt_cache_key", "safety_identifier", "user"];
/// The maximum length of an ignored string, in bytes.
const IGNORED_TEXT_BYTES: usize = 512;

/// The `metadata` of a completion request.
#[derive(Default, Deserialize)]
struct Labels {
    metadata: Option<BTreeMap<String, String>>,
}

/// Returns the key by which the requests to an alias are split, if the caller sets one.
#[must_use]
pub fn split_key(fields: &Map<String, Value>) -> Option<String> {
    SPLIT_KEYS.iter().find_map(|name| fields.get(*name)?.as_str()).map(str::to_owned)
}

/// Removes the fields that have no effect from a request body.
///
/// # Errors
/// [`InferenceError::Invalid`]: a field has the wrong type or is too long.
pub fn remove_ignored(fields: &mut Map<String, Value>) -> Result<(), InferenceError> {
    for name in IGNORED_TEXTS {
        match fields.remove(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.len() <= IGNORED_TEXT_BYTES => {}
            Some(Value::String(text)) => {
                let length = text.len();
                let message = format!("Invalid '{name}': {length} bytes; at most {IGNORED_TEXT_BYTES} are allowed.");
                return Err(InferenceError::invalid(name, message));
            }
            Some(_) => {
                let message = format!("Invalid '{name}': invalid type: expected a string.");
                return Err(InferenceError::Invalid { param: Some(name.into()), code: "invalid_type", message });
            }
        }
    }
    if let Some(labels) = fields.remove("metadata") {
        let labels: Labels = json::from_value(Value::Object([("metadata".to_owned(), labels)].into_iter().collect()))?;
        metadata::check(&labels.metadata.unwrap_or_default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_key_that_is_set_splits_requests() {
        let key = |fields: Value| split_key(fields.as_object().unwrap());
        assert_eq!(key(json!({"user": "u", "safety_identifier": "s"})).as_deref(), Some("s"));
        assert_eq!(key(json!({"user": "u", "prompt_cache_key": "p"})).as_deref(), Some("p"));
        assert_eq!(key(json!({"user": "u", "prompt_cache_key": null})).as_deref(), Some("u"));
        assert_eq!(key(json!({"model": "m"})), None);
    }
}
