//! The text line of a job event.

use serde_json::Value;

use crate::{error::Result, output};

/// Prints an event as one line: time, level, message.
pub(super) fn print(event: &Value) -> Result<()> {
    let level = event["level"].as_str().unwrap_or("info");
    let said = output::text(&event["message"]);
    output::line(&format!("{}  {level:<5}  {said}", output::moment(&event["created_at"])))
}
