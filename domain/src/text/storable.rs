//! Text that PostgreSQL can store. A `text` or `jsonb` value cannot contain U+0000, but untrusted text (an exception of
//! a chat template, an unknown key of a batch's line) may. A statement that PostgreSQL rejects for it would be retried
//! without end, so all untrusted text is sanitized here before it is written to a row.

use std::borrow::Cow;

use serde_json::Value;

/// Replaces each U+0000 by U+FFFD.
#[must_use]
pub fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Replaces each U+0000 in all strings and keys of a JSON value by U+FFFD.
#[must_use]
pub fn storable_json(value: &Value) -> Cow<'_, Value> {
    if has_nul(value) { Cow::Owned(washed(value)) } else { Cow::Borrowed(value) }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn washed(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(storable(text).into_owned()),
        Value::Array(items) => Value::Array(items.iter().map(washed).collect()),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| (storable(key).into_owned(), washed(value));
            Value::Object(fields.iter().map(field).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn attack_a23_nul_is_replaced_wherever_it_is() {
        assert_eq!(storable("a\0b\0"), "a\u{fffd}b\u{fffd}");
        assert!(matches!(storable("plain"), Cow::Borrowed("plain")));
        let value = json!({"a\0": ["x", {"y": "\0"}], "n": 1});
        assert_eq!(*storable_json(&value), json!({"a\u{fffd}": ["x", {"y": "\u{fffd}"}], "n": 1}));
    }
}
