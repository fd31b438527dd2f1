//! The message for a chat template that does not compile or render.

use minijinja::{Error, ErrorKind};

/// The maximum length of the message of a template's own exception, in characters.
const MAX_REASON_CHARS: usize = 1000;

/// Returns the message of the template's author, or the error and its line.
pub(crate) fn reason(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let detail = match detail.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => format!("{}…", &detail[..end]),
        None => detail,
    };
    match (error.kind(), error.line()) {
        (ErrorKind::InvalidOperation, _) if error.detail().is_some() => detail,
        (_, Some(line)) => format!("{detail} (line {line} of the template)"),
        (_, None) => detail,
    }
}
