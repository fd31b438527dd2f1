//! Batches: their state machine, and the validation of the lines of the input file.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use strum::{EnumString, IntoStaticStr, VariantArray};

use crate::text::{storable::storable, text_file};

/// The maximum number of lines in a file. Source: OpenAI's batch limits.
pub const MOST_ROWS: usize = 50_000;

/// The maximum length of a line, in bytes.
pub const LINE_BYTES: usize = 4 << 20;

/// The maximum length of a `custom_id`, in bytes.
const ID_BYTES: usize = 512;

/// The endpoint of all requests of a batch, named by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
pub enum BatchEndpoint {
    /// Chat completions.
    #[strum(serialize = "/v1/chat/completions")]
    ChatCompletions,
    /// Text completions.
    #[strum(serialize = "/v1/completions")]
    Completions,
    /// Responses.
    #[strum(serialize = "/v1/responses")]
    Responses,
}

impl BatchEndpoint {
    /// Returns the path, which is also the name in SQL.
    #[must_use]
    pub fn path(self) -> &'static str {
        self.into()
    }
}

/// The state of a batch, in OpenAI's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum BatchState {
    /// The file is being validated.
    Validating,
    /// The requests are being processed.
    InProgress,
    /// The output files are being written.
    Finalizing,
    /// Every request has an answer.
    Completed,
    /// The file was refused, or the batch was abandoned after repeated errors.
    Failed,
    /// The completion window ended; the output has the requests that were answered before.
    Expired,
    /// A cancellation was requested.
    Cancelling,
    /// The batch was cancelled; the output has the requests that were answered before.
    Cancelled,
}

/// An event in the life of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray)]
pub enum BatchEvent {
    /// The file is valid.
    FileAccepted,
    /// The file is invalid.
    FileRefused,
    /// Every request has an answer.
    AnswersComplete,
    /// The output files are written, with every answer.
    FilesWritten,
    /// The output files are written, with the answers that were complete when the window ended.
    TimeUp,
    /// The user requested a cancellation.
    CancelAsked,
    /// The output files are written, with the answers that were complete before the cancellation.
    Stopped,
    /// Processing fails repeatedly with the same error.
    GivenUp,
}

/// The error for an event that is not allowed in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a batch that is {} does not allow {event:?}", from.name())]
pub struct IllegalBatchStep {
    /// The batch's state.
    pub from: BatchState,
    /// The event that is not allowed.
    pub event: BatchEvent,
}

impl BatchState {
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns whether no event is allowed in this state.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }

    /// Applies the transition table of batches: an event that it does not list for a state is refused.
    ///
    /// # Errors
    /// [`IllegalBatchStep`].
    pub fn apply(self, event: BatchEvent) -> Result<Self, IllegalBatchStep> {
        use BatchEvent as E;
        Ok(match (self, event) {
            (Self::Validating, E::FileAccepted) => Self::InProgress,
            (Self::Validating, E::FileRefused) => Self::Failed,
            (Self::InProgress, E::AnswersComplete) => Self::Finalizing,
            (Self::Finalizing, E::FilesWritten) => Self::Completed,
            (Self::Validating | Self::InProgress | Self::Finalizing, E::TimeUp) => Self::Expired,
            (Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling, E::CancelAsked) => {
                Self::Cancelling
            }
            (Self::Cancelling, E::Stopped) => Self::Cancelled,
            (Self::Validating | Self::InProgress | Self::Finalizing, E::GivenUp) => Self::Failed,
            (Self::Cancelling, E::GivenUp) => Self::Cancelled,
            (from, event) => return Err(IllegalBatchStep { from, event }),
        })
    }
}

/// An error in the input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defect {
    /// A stable, machine-readable code.
    pub code: String,
    /// The line number in the file, from 1; `None`: the error concerns the file as a whole.
    pub line: Option<u64>,
    /// The error message.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
}

/// The maximum length of a defect's message and field name, in characters: they may repeat the file's content.
const TEXT_CHARS: usize = 500;

impl Defect {
    /// Returns a defect of the file as a whole.
    pub fn of_file(code: &str, message: impl fmt::Display) -> Self {
        Self { code: code.into(), line: None, message: message.to_string(), param: None }
    }

    /// Returns a defect of one line.
    pub fn of_line(line: u64, code: &str, param: Option<&str>, message: impl fmt::Display) -> Self {
        Self {
            code: code.into(),
            line: Some(line),
            message: truncated(&message.to_string()),
            param: param.map(truncated),
        }
    }
}

/// Truncates a text that repeats untrusted content, and removes what PostgreSQL cannot store.
fn truncated(text: &str) -> String {
    let text = storable(text);
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

/// One request of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRow {
    /// The caller's ID for the request.
    pub custom_id: String,
    /// The request body.
    pub body: Map<String, Value>,
}

/// Parses line number `line` of a batch for `endpoint`.
///
/// # Errors
/// The first [`Defect`] found.
pub fn read_row(text: &[u8], line: u64, endpoint: &str) -> Result<BatchRow, Defect> {
    let wrong = |code: &str, param: Option<&str>, message: String| Defect::of_line(line, code, param, message);
    let mut fields: Map<String, Value> = serde_json::from_slice(text).map_err(|e| {
        let message = match (text_file::foreign_encoding(text), text_file::line_end_hint(text)) {
            (Some(encoding), _) => format!("The file is {encoding}; save it as UTF-8."),
            (None, Some(hint)) => format!("This line is not a JSON object: {e}; {hint}."),
            (None, None) => format!("This line is not a JSON object: {e}."),
        };
        wrong("invalid_json_line", None, message)
    })?;
    let mut take = |name: &str| {
        let missing =
            || wrong("missing_required_parameter", Some(name), format!("Missing required parameter: '{name}'."));
        fields.shift_remove(name).ok_or_else(missing)
    };
    let (id, method, url, body) = (take("custom_id")?, take("method")?, take("url")?, take("body")?);
    let Value::String(custom_id) = id else {
        return Err(wrong("invalid_type", Some("custom_id"), "Invalid 'custom_id': it must be a string.".into()));
    };
    if custom_id.is_empty() || custom_id.len() > ID_BYTES {
        let message = format!("Invalid 'custom_id': it must have 1 to {ID_BYTES} bytes.");
        return Err(wrong("invalid_value", Some("custom_id"), message));
    }
    if method != "POST" {
        return Err(wrong(
            "invalid_method",
            Some("method"),
            format!("Invalid 'method': {method}; it must be \"POST\"."),
        ));
    }
    if url != endpoint {
        let message = format!("Invalid 'url': {url}; the batch is for {endpoint}.");
        return Err(wrong("mismatched_endpoint", Some("url"), message));
    }
    let Value::Object(body) = body else {
        return Err(wrong("invalid_type", Some("body"), "Invalid 'body': it must be an object.".into()));
    };
    if body.get("stream").is_some_and(|stream| *stream == true) {
        let message =
            "Unsupported 'body.stream': batch requests cannot be streamed. Omit it or set it to false.".to_owned();
        return Err(wrong("unsupported_parameter", Some("body.stream"), message));
    }
    if let Some(name) = fields.keys().next() {
        let message = format!("Unknown parameter: '{name}'; expected 'custom_id', 'method', 'url' and 'body'.");
        return Err(wrong("unknown_parameter", Some(name), message));
    }
    Ok(BatchRow { custom_id, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::assert_names_read_back;

    const CHAT: &str = "/v1/chat/completions";

    #[test]
    fn a_final_state_takes_no_event() {
        assert_names_read_back::<BatchState>();
        assert_names_read_back::<BatchEndpoint>();
        assert_eq!(BatchState::InProgress.name(), "in_progress");
        for state in BatchState::VARIANTS {
            let taken = BatchEvent::VARIANTS.iter().filter(|event| state.apply(**event).is_ok()).count();
            assert_eq!(taken == 0, state.is_final(), "{state:?}");
        }
    }

    #[test]
    fn attack_a04_a_defect_holds_no_character_that_the_database_refuses() {
        let line = br#"{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}, "x\u0000y": 1}"#;
        let defect = read_row(line, 1, CHAT).unwrap_err();
        assert_eq!(defect.param.as_deref(), Some("x\u{fffd}y"));
        assert!(!defect.message.contains('\0'), "{}", defect.message);
    }

    #[test]
    fn limit_a_defect_repeats_a_bounded_part_of_the_line() {
        let key = "k".repeat(TEXT_CHARS + 1);
        let line = format!(r#"{{"custom_id": "a", "method": "POST", "url": "{CHAT}", "body": {{}}, "{key}": 1}}"#);
        let defect = read_row(line.as_bytes(), 1, CHAT).unwrap_err();
        assert_eq!(defect.param.unwrap().chars().count(), TEXT_CHARS + 1);
        assert_eq!(defect.message.chars().count(), TEXT_CHARS + 1);
    }

    #[test]
    fn limit_a_custom_id_is_short() {
        let line = |bytes| {
            let id = "i".repeat(bytes);
            format!(r#"{{"custom_id": "{id}", "method": "POST", "url": "{CHAT}", "body": {{}}}}"#)
        };
        assert_eq!(read_row(line(ID_BYTES).as_bytes(), 1, CHAT).unwrap().custom_id.len(), ID_BYTES);
        assert_eq!(read_row(line(ID_BYTES + 1).as_bytes(), 1, CHAT).unwrap_err().param.as_deref(), Some("custom_id"));
    }

    #[test]
    fn case_08_other_encodings_and_ends_of_lines_are_named() {
        let refused = |text: &[u8]| read_row(text, 1, CHAT).unwrap_err().message;
        assert_eq!(refused(b"\xFF\xFE{\0"), "The file is UTF-16; save it as UTF-8.");
        assert!(refused(b"{}\r{}").ends_with("its lines end with a carriage return alone; end them with a line feed."));
        assert!(refused("{}\u{2028}{}".as_bytes()).contains("U+2028 and U+2029 are not line endings"));
    }

    #[test]
    fn a_line_that_is_no_request_is_reported_with_its_field() {
        let good = r#"{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}"#;
        assert_eq!(read_row(good.as_bytes(), 1, CHAT).unwrap().custom_id, "a");
        for (from, to, code, param) in [
            ("{\"custom_id\"", "[\"custom_id\"", "invalid_json_line", None),
            ("\"custom_id\": \"a\", ", "", "missing_required_parameter", Some("custom_id")),
            ("\"a\"", "7", "invalid_type", Some("custom_id")),
            ("\"a\"", "\"\"", "invalid_value", Some("custom_id")),
            ("POST", "GET", "invalid_method", Some("method")),
            ("/chat", "", "mismatched_endpoint", Some("url")),
            ("{\"model\": \"m\"}", "[]", "invalid_type", Some("body")),
            ("\"m\"", "\"m\", \"stream\": true", "unsupported_parameter", Some("body.stream")),
            ("\"method\"", "\"x\": 1, \"method\"", "unknown_parameter", Some("x")),
        ] {
            let defect = read_row(good.replacen(from, to, 1).as_bytes(), 7, CHAT).unwrap_err();
            assert_eq!((defect.code.as_str(), defect.param.as_deref(), defect.line), (code, param, Some(7)), "{to}");
        }
    }
}
