//! The bounds of a JSON schema in a request.

use serde_json::Value;

use crate::error::InferenceError;

/// The maximum size of a schema, in bytes of JSON.
const SCHEMA_BYTES: usize = 64 << 10;
/// The maximum nesting depth of a schema, in arrays and objects of its JSON.
const SCHEMA_DEPTH: usize = 48;

/// Checks a schema's type, depth and size. Refuses `x-guidance`, llguidance's own options, which users may not set.
pub(super) fn check_schema(at: &str, schema: &Value) -> Result<(), InferenceError> {
    if !schema.is_object() {
        return Err(InferenceError::invalid(at, format!("Invalid '{at}': a JSON schema is an object.")));
    }
    if schema.get("x-guidance").is_some() {
        let at = format!("{at}.x-guidance");
        return Err(InferenceError::unsupported(&at, format!("Unknown keyword: '{at}'.")));
    }
    let depth = depth_of(schema);
    if depth > SCHEMA_DEPTH {
        let message = format!("Invalid '{at}': nested {depth} deep; at most {SCHEMA_DEPTH} levels are allowed.");
        return Err(InferenceError::invalid(at, message));
    }
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES {
        let message = format!("Invalid '{at}': {bytes} bytes of JSON; at most {SCHEMA_BYTES} are allowed.");
        return Err(InferenceError::invalid(at, message));
    }
    Ok(())
}

/// Returns the nesting depth of arrays and objects. The parser limits the depth, which bounds this recursion.
pub(super) fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}
