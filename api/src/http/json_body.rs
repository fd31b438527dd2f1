//! JSON bodies whose errors name the field at fault by its path, as in `adapter.rank`.

use attune_domain::text::text_file::{foreign_encoding, without_mark};
use attune_inference::{json::refusal, strict_json::Strict};
use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
};
use serde::de::DeserializeOwned;

use crate::{app::App, error::ApiError};

/// A JSON body.
#[derive(Debug, Clone)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::UnsupportedMediaType { wanted: "application/json" });
        }
        let bytes = Bytes::from_request(request, app).await.map_err(|e| unread(&e, app.limits.json_bytes))?;
        from_slice(&bytes).map(Body)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn unread(rejection: &BytesRejection, limit: u64) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::TooLarge { what: "request body", limit };
    }
    ApiError::Invalid { param: None, code: "incomplete_body", message: "The request body was incomplete.".into() }
}

/// Parses JSON text; a byte order mark at its beginning is ignored, as in files.
///
/// # Errors
/// [`ApiError::Invalid`] with the field's path.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = without_mark(bytes);
    if let Some(encoding) = foreign_encoding(bytes) {
        let message = format!("The body is {encoding}; send UTF-8.");
        return Err(ApiError::Invalid { param: None, code: "invalid_json", message });
    }
    refuse_nul(bytes)?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value =
        serde_path_to_error::deserialize(Strict(&mut reader)).map_err(|e| refusal(e.path().to_string(), e.inner()))?;
    reader.end().map_err(|e| refusal(".".into(), &e))?;
    Ok(value)
}

/// Deserializes a JSON value that has already been parsed.
///
/// # Errors
/// As [`from_slice`].
#[cfg(test)]
pub(crate) fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ApiError> {
    Ok(attune_inference::json::from_value(value)?)
}

/// Refuses the character U+0000, which PostgreSQL cannot store in text. It only occurs escaped: JSON forbids it
/// otherwise.
fn refuse_nul(bytes: &[u8]) -> Result<(), ApiError> {
    const ESCAPED: &[u8] = br"\u0000";
    if !bytes.windows(ESCAPED.len()).any(|window| window == ESCAPED) {
        return Ok(());
    }
    let value = serde_json::from_slice(bytes).map_err(|e| refusal(".".into(), &e))?;
    let Some(path) = path_of_nul(&value) else { return Ok(()) };
    let message = format!("Invalid '{path}': the character U+0000 is not allowed in a string.");
    Err(ApiError::Invalid { param: Some(path), code: "invalid_value", message })
}

/// Returns the path of the first text or field name with U+0000.
fn path_of_nul(value: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    let joined = |step: String, rest: String| match rest.as_str() {
        "" => step,
        rest if rest.starts_with('[') => step + rest,
        rest => format!("{step}.{rest}"),
    };
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => {
            let mut found = items.iter().enumerate().filter_map(|(i, v)| Some((i, path_of_nul(v)?)));
            found.next().map(|(i, rest)| joined(format!("[{i}]"), rest))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, v)| {
            if name.contains('\0') {
                Some(name.replace('\0', "\\u0000"))
            } else {
                Some(joined(name.clone(), path_of_nul(v)?))
            }
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only its reading is tested")]
        inner: Inner,
        #[serde(default)]
        #[expect(dead_code, reason = "only its reading is tested")]
        list: Vec<Inner>,
        #[expect(dead_code, reason = "only its reading is tested")]
        maybe: Option<Box<Inner>>,
        #[expect(dead_code, reason = "only its reading is tested")]
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    enum Kind {
        #[expect(dead_code, reason = "only its reading is tested")]
        Wide(Inner),
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only its reading is tested")]
        rank: u32,
    }

    fn refused(text: &str) -> (Option<String>, &'static str, String) {
        match from_slice::<Outer>(text.as_bytes()) {
            Err(ApiError::Invalid { param, code, message }) => (param, code, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_unknown_field_is_named_by_its_path() {
        let (param, code, message) = refused(r#"{"inner": {"rank": 1, "rnak": 2}}"#);
        assert_eq!((param.as_deref(), code), (Some("inner.rnak"), "unknown_parameter"));
        assert_eq!(message, "Unknown parameter: 'inner.rnak'; expected 'rank'.");
        assert_eq!(refused(r#"{"inner": {"rank": 1}, "a": 1}"#).0.as_deref(), Some("a"));
    }

    #[test]
    fn a_missing_field_is_named_by_its_path() {
        assert_eq!(refused("{}").2, "Missing required parameter: 'inner'.");
        assert_eq!(refused(r#"{"inner": {"rank": 1}, "list": [{}]}"#).2, "Missing required parameter: 'list[0].rank'.");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_by_its_path() {
        let (param, code, message) = refused(r#"{"inner": {"rank": "16"}}"#);
        assert_eq!((param.as_deref(), code), (Some("inner.rank"), "invalid_type"));
        assert_eq!(message, r#"Invalid 'inner.rank': invalid type: string "16", expected u32."#);
        assert_eq!(refused(r#"{"inner": {"rank": -1}}"#).1, "invalid_value");
    }

    #[test]
    fn the_character_that_postgres_cannot_keep_is_refused_where_it_is() {
        let wrong = |text: &str| match from_slice::<serde_json::Value>(text.as_bytes()) {
            Err(ApiError::Invalid { param, .. }) => param,
            other => panic!("{other:?}"),
        };
        assert_eq!(wrong(r#"{"a": [{"b": "x"}, {"b": "x\u0000"}]}"#).as_deref(), Some("a[1].b"));
        assert_eq!(wrong(r#"{"metadata": {"k\u0000": "v"}}"#).as_deref(), Some(r"metadata.k\u0000"));
        assert!(from_slice::<serde_json::Value>(br#"{"a": "a backslash: \\u0000"}"#).is_ok());
    }

    #[test]
    fn a_list_is_no_object() {
        assert_eq!(refused(r#" [{"rank": 1}, []]"#).2, "Invalid body: invalid type: sequence, expected an object.");
        for (text, place) in [
            (r#"{"inner": [1]}"#, "inner"),
            (r#"{"inner": {"rank": 1}, "list": [{"rank": 1}, [1]]}"#, "list[1]"),
            (r#"{"inner": {"rank": 1}, "maybe": []}"#, "maybe"),
            (r#"{"inner": {"rank": 1}, "kind": {"Wide": [1]}}"#, "kind.Wide"),
        ] {
            let (param, code, message) = refused(text);
            assert_eq!((param.as_deref(), code), (Some(place), "invalid_type"), "{message}");
        }
        let whole =
            r#"{"inner": {"rank": 1}, "list": [{"rank": 2}], "maybe": {"rank": 3}, "kind": {"Wide": {"rank": 4}}}"#;
        from_slice::<Outer>(whole.as_bytes()).unwrap();
    }

    #[test]
    fn case_08_a_byte_order_mark_before_a_body_is_skipped() {
        from_slice::<Outer>("\u{feff}{\"inner\": {\"rank\": 1}}".as_bytes()).unwrap();
        let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let refused = from_slice::<Outer>(&utf16).unwrap_err().body().error;
        assert_eq!(refused.message, "The body is UTF-16; send UTF-8.");
    }

    #[test]
    fn what_is_not_json_says_where() {
        for text in ["", "{", "{\"inner\": {\"rank\": 1}} x", "\u{feff}\u{feff}{}", "nul"] {
            let (param, code, message) = refused(text);
            assert_eq!((param, code), (None, "invalid_json"), "{text}: {message}");
            assert!(message.contains("line 1 column"), "{message}");
        }
        assert_eq!(refused("[]").1, "invalid_body");
    }
}
