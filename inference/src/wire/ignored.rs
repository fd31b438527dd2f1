//! Fields of OpenAI's request bodies that have no effect here. Their format is checked, and then they are removed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::metadata;
use crate::{error::InferenceError, json};

/// The names of the ignored string fields.
const IGNORED_TEXTS: [&str; 5] =
    ["user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"];
/// The maximum length of an ignored string, in bytes.
const IGNORED_TEXT_BYTES: usize = 512;

/// The `metadata` of a completion request.
#[derive(Default, Deserialize)]
struct Labels {
    metadata: Option<BTreeMap<String, String>>,
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
