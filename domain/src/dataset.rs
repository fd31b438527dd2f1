//! Dataset rows: the allowed content of one JSONL line, and the validation of a whole file in constant memory.
//!
//! Three formats are trained on: chat (`{"messages": [...]}`), prompt/completion (`{"prompt": …, "completion": …}`) and
//! text (`{"text": …}`); preference rows are parsed, but no method trains on them. Other shapes are converted to one of
//! these. A file has one shape. Rows are never corrected or dropped: anything unknown is a defect with its line number.
//! Tokens are counted in `attune-text`, not here.

mod chat;
mod checker;
/// Token counts of a file's rows.
pub mod file_facts;
mod json;
mod shapes;
mod tool_calls;

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use json::{Fields, Json, non_null};
use serde_json::Value;
use strum::{EnumString, IntoStaticStr, VariantArray};

pub use checker::{DatasetFacts, Defects, RowChecker};
pub use tool_calls::{MAX_TOOL_CALLS, MAX_TOOL_NAME_BYTES, MAX_TOOLS, without_nulls};

use crate::text::text_file;

/// The maximum length of a line, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// The maximum number of messages in a chat: the cost of finding the trained tokens grows with its square.
pub const MAX_MESSAGES: usize = 2048;

/// The number of defects that are kept with their messages; the rest are only counted.
pub const KEPT_DEFECTS: usize = 20;

/// The format of a file's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RowFormat {
    /// `{"messages": [...]}`.
    Chat,
    /// `{"prompt": …, "completion": …}`.
    Completion,
    /// `{"text": …}`.
    Text,
    /// A chat with a preferred and a non-preferred answer. No method trains on it yet.
    Preference,
}

impl RowFormat {
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completion => "prompt/completion",
            other => other.name(),
        })
    }
}

/// The shape of a row in the uploaded file. Alpaca and ShareGPT rows are converted to chats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Shape {
    /// `{"messages": [...]}`.
    Chat,
    /// `{"prompt": …, "completion": …}`.
    Completion,
    /// `{"text": …}`.
    Text,
    /// `{"instruction": …, "input": …, "output": …}`.
    Alpaca,
    /// `{"conversations": [{"from": …, "value": …}]}`.
    ShareGpt,
    /// `{"input": …, "preferred_output": …, "non_preferred_output": …}`.
    Preference,
}

impl Shape {
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns whether trainers read rows of this shape without conversion.
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        !matches!(self, Self::Alpaca | Self::ShareGpt)
    }

    /// Returns the shape of a row with these fields, if they match one.
    #[must_use]
    pub fn of(mut fields: impl Iterator<Item = impl AsRef<str>> + Clone) -> Option<Self> {
        let has = |names: &[&str]| fields.clone().any(|field| names.contains(&field.as_ref()));
        Some(if has(&["messages"]) {
            Self::Chat
        } else if has(&["preferred_output", "non_preferred_output"]) {
            Self::Preference
        } else if has(&["conversations"]) {
            Self::ShareGpt
        } else if has(&["instruction"]) {
            Self::Alpaca
        } else if has(&["prompt", "completion"]) {
            Self::Completion
        } else if fields.any(|field| field.as_ref() == "text") {
            Self::Text
        } else {
            return None;
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completion => "prompt/completion",
            Self::ShareGpt => "ShareGPT",
            other => other.name(),
        })
    }
}

/// The author's role in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Instructions for the assistant.
    System,
    /// The user's messages.
    User,
    /// The assistant's answers; their text is trained.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// Returns the name in the API and in chat templates.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The author's role.
    pub role: Role,
    /// The message's text; `None` only together with tool calls. Templates distinguish `None` from an empty string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The loss weight: `Some(0)` is an assistant message that is context only and not trained. `None` means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    /// The author's name, passed to the chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tool calls of an assistant message: OpenAI's list, but with arguments as objects instead of JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The ID of the call that a tool message responds to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Returns a message with only a role and a text.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        let content = Some(content.into());
        Self { role, content, weight: None, name: None, tool_calls: None, tool_call_id: None }
    }

    /// Returns the message's text; empty if it has only tool calls.
    #[must_use]
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// Returns the names of the tools that the message calls.
    pub fn called(&self) -> impl Iterator<Item = &str> {
        let calls = self.tool_calls.as_ref().and_then(Value::as_array).into_iter().flatten();
        calls.filter_map(|call| call["function"]["name"].as_str())
    }

    /// Returns whether the message has a loss.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.role == Role::Assistant && self.weight != Some(0)
    }
}

/// One training example. It serializes to the line that a trainer reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Row {
    /// A chat whose last message is the assistant's.
    Chat {
        /// The messages, at least one.
        messages: Vec<Message>,
        /// The tools that may be called: a non-empty list in the form that chat templates expect.
        #[serde(skip_serializing_if = "Option::is_none")]
        tools: Option<Value>,
        /// `true`: a message may contain several calls. Stored only: templates do not read it.
        #[serde(skip_serializing_if = "Option::is_none")]
        parallel_tool_calls: Option<bool>,
    },
    /// A prompt and its completion.
    Completion {
        /// The context, without a loss; may be empty.
        prompt: String,
        /// The trained text; not empty.
        completion: String,
    },
    /// A plain document.
    Text {
        /// The trained text; not empty.
        text: String,
    },
    /// A prompt with two answers.
    Preference {
        /// The prompt's messages, at least one.
        #[serde(serialize_with = "as_input")]
        input: Vec<Message>,
        /// The preferred answer.
        #[serde(rename = "preferred_output")]
        preferred: Vec<Message>,
        /// The non-preferred answer.
        #[serde(rename = "non_preferred_output")]
        non_preferred: Vec<Message>,
    },
}

fn as_input<S: Serializer>(messages: &[Message], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map([("messages", messages)])
}

impl Row {
    /// Returns a chat without tools.
    #[must_use]
    pub const fn chat(messages: Vec<Message>) -> Self {
        Self::Chat { messages, tools: None, parallel_tool_calls: None }
    }

    /// Returns the row's format.
    #[must_use]
    pub const fn format(&self) -> RowFormat {
        match self {
            Self::Chat { .. } => RowFormat::Chat,
            Self::Completion { .. } => RowFormat::Completion,
            Self::Text { .. } => RowFormat::Text,
            Self::Preference { .. } => RowFormat::Preference,
        }
    }
}

/// A defect of one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct RowDefect {
    /// The line number, from 1.
    pub line: u64,
    /// The message for the user, without the line number.
    pub message: String,
}

/// Parses one line. `line_no` counts from 1; a UTF-8 byte order mark at the line's beginning is ignored.
///
/// # Errors
/// [`RowDefect`], the first one found in the line.
pub fn parse_row(line_no: u64, line: &[u8]) -> Result<Row, RowDefect> {
    read(line_no, line).map(|(_, row)| row).map_err(|message| RowDefect { line: line_no, message })
}

fn read(line_no: u64, line: &[u8]) -> Result<(Shape, Row), String> {
    // Concatenated files have a byte order mark where each of them began.
    let line = text_file::without_mark(line);
    let text = std::str::from_utf8(line).map_err(|e| match text_file::foreign_encoding(line) {
        Some(encoding) if line_no == 1 => format!("the file is {encoding}; save it as UTF-8"),
        _ => format!("not UTF-8: byte {} of the line is not valid", e.valid_up_to() + 1),
    })?;
    let json = serde_json::from_str(text).map_err(|e| not_json(line, &e))?;
    let fields = match json {
        Json::Object(fields) => non_null(fields).collect::<Fields>(),
        other => return Err(format!("must be a JSON object; found {}", other.kind())),
    };
    let Some(shape) = Shape::of(fields.iter().map(|(name, _)| name)) else {
        let found: Vec<_> = fields.iter().map(|(name, _)| format!("'{name}'")).collect();
        let found = if found.is_empty() { "no field".into() } else { found.join(", ") };
        return Err(format!("{NEEDED}; found {found}"));
    };
    let row = match shape {
        Shape::Chat => chat::chat(fields),
        Shape::Completion => completion(fields),
        Shape::Text => document(fields),
        Shape::Alpaca => shapes::alpaca(fields),
        Shape::ShareGpt => shapes::sharegpt(fields),
        Shape::Preference => shapes::preference(fields),
    };
    row.map(|row| (shape, row))
}

/// The message for a row whose fields match no shape.
const NEEDED: &str = "needs 'messages', or 'prompt' and 'completion', or 'text', or 'instruction' and 'output', or \
                      'conversations', or 'input', 'preferred_output' and 'non_preferred_output'";

fn not_json(line: &[u8], error: &serde_json::Error) -> String {
    let whole = error.to_string();
    let reason = whole.split(" at line ").next().unwrap_or(&whole);
    let column = error.column();
    if let Some(hint) = text_file::line_end_hint(line) {
        return format!("not JSON: {reason} (column {column}); {hint}");
    }
    match error.classify() {
        serde_json::error::Category::Eof => {
            format!("not JSON: {reason} (column {column}); each row must be complete on one line")
        }
        serde_json::error::Category::Data => format!("{reason} (column {column})"),
        _ => format!("not JSON: {reason} (column {column})"),
    }
}

fn completion(fields: Fields) -> Result<Row, String> {
    let (mut prompt, mut completion) = (None, None);
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("prompt", Json::Text(text)) => prompt = Some(text),
            ("completion", Json::Text(text)) => completion = Some(text),
            ("prompt" | "completion", other) => {
                return Err(format!("{name}: must be a string; found {}", other.kind()));
            }
            _ => return Err(format!("{name}: unknown field; allowed: prompt, completion")),
        }
    }
    let prompt = prompt.ok_or("'prompt' is missing")?;
    let completion = completion.ok_or("'completion' is missing")?;
    if completion.is_empty() {
        return Err("completion: must not be empty".into());
    }
    Ok(Row::Completion { prompt, completion })
}

fn document(fields: Fields) -> Result<Row, String> {
    let mut document = None;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("text", Json::Text(text)) => document = Some(text),
            ("text", other) => return Err(format!("text: must be a string; found {}", other.kind())),
            _ => return Err(format!("{name}: unknown field; a text row has only 'text'")),
        }
    }
    match document {
        Some(text) if !text.is_empty() => Ok(Row::Text { text }),
        _ => Err("text: must not be empty".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::names::{assert_names_read_back, assert_serialized_by_name};

    const CHAT: &str =
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;
    const COMPLETION: &str = r#"{"prompt": "2+2=", "completion": "4"}"#;

    const TEXT: &str = r#"{"text": "Once upon a time"}"#;

    fn check(file: &[u8]) -> Result<DatasetFacts, Defects> {
        let mut checker = RowChecker::new();
        checker.push(file);
        checker.finish()
    }

    fn defect_of(line: &str) -> String {
        parse_row(1, line.as_bytes()).unwrap_err().message
    }

    #[test]
    fn every_format_is_read_and_has_a_name() {
        let row = parse_row(1, CHAT.as_bytes()).unwrap();
        let messages = vec![Message::new(Role::User, "Hi"), Message::new(Role::Assistant, "Hello")];
        assert_eq!(row, Row::chat(messages));
        let row = parse_row(1, COMPLETION.as_bytes()).unwrap();
        assert_eq!(row, Row::Completion { prompt: "2+2=".into(), completion: "4".into() });
        let row = parse_row(1, TEXT.as_bytes()).unwrap();
        assert_eq!(row, Row::Text { text: "Once upon a time".into() });
    }

    #[test]
    fn a_name_is_the_stored_one() {
        assert_names_read_back::<RowFormat>();
        assert_serialized_by_name::<RowFormat>();
        assert_serialized_by_name::<Shape>();
        assert_serialized_by_name::<Role>();
        assert_eq!((Shape::ShareGpt.name(), Shape::ShareGpt.to_string().as_str()), ("sharegpt", "ShareGPT"));
        let shown = RowFormat::VARIANTS.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown, ["chat", "prompt/completion", "text", "preference"]);
    }

    #[test]
    fn weight_and_name_are_kept() {
        let line = r#"{"messages": [{"role": "user", "content": "", "name": "ann"},
            {"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b", "weight": 1}]}"#;
        let Row::Chat { messages, .. } = parse_row(1, line.as_bytes()).unwrap() else { panic!() };
        assert_eq!(messages[0].name.as_deref(), Some("ann"));
        assert_eq!(messages.iter().map(Message::is_trained).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn every_defect_is_named() {
        let cases: &[(&str, &str)] = &[
            ("{", "not JSON: EOF while parsing an object (column 1); each row must be complete on one line"),
            ("hello", "not JSON: expected value (column 1)"),
            (r#"{"messages": []} x"#, "not JSON: trailing characters (column 18)"),
            ("[1]", "must be a JSON object; found a list"),
            ("{}", &format!("{NEEDED}; found no field")),
            (r#"{"txt": "a"}"#, &format!("{NEEDED}; found 'txt'")),
            (r#"{"text": ""}"#, "text: must not be empty"),
            (r#"{"text": ["a"]}"#, "text: must be a string; found a list"),
            (r#"{"text": "a", "meta": {}}"#, "meta: unknown field; a text row has only 'text'"),
            (r#"{"prompt": "a"}"#, "'completion' is missing"),
            (r#"{"completion": "a"}"#, "'prompt' is missing"),
            (r#"{"prompt": 1, "completion": "a"}"#, "prompt: must be a string; found a number"),
            (r#"{"prompt": "a", "completion": ""}"#, "completion: must not be empty"),
            (r#"{"prompt": "a", "completion": "b", "id": 3}"#, "id: unknown field; allowed: prompt, completion"),
            (r#"{"prompt": "a", "prompt": "b", "completion": "c"}"#, "the field 'prompt' is given twice (column 29)"),
            (r#"{"messages": {}}"#, "messages: must be a list; found an object"),
            (r#"{"messages": []}"#, "messages: the list is empty"),
            (r#"{"messages": [], "tools": []}"#, "messages: the list is empty"),
            (r#"{"messages": [], "tools": {}}"#, "tools: must be a list; found an object"),
            (r#"{"messages": [], "functions": [{}]}"#, "functions: the older format is not supported; use 'tools'"),
            (
                r#"{"messages": [], "parallel_tool_calls": 1}"#,
                "parallel_tool_calls: must be true or false; found a number",
            ),
            (
                r#"{"messages": [], "x": 1}"#,
                "x: unknown field; a chat row has only 'messages', 'tools', 'parallel_tool_calls'",
            ),
            (r#"{"messages": ["a"]}"#, "messages[0]: must be an object; found a string"),
            (r#"{"messages": [{"content": "a"}]}"#, "messages[0]: 'role' is missing"),
            (r#"{"messages": [{"role": "user"}]}"#, "messages[0]: 'content' is missing"),
            (
                r#"{"messages": [{"role": "bot", "content": "a"}]}"#,
                "messages[0].role: 'bot' is unknown; allowed: system, developer, user, assistant, tool",
            ),
            (
                r#"{"messages": [{"role": "function", "content": "a"}]}"#,
                "messages[0].role: 'function': the older format is not supported; use 'tool'",
            ),
            (r#"{"messages": [{"role": "user", "content": null}]}"#, "messages[0]: 'content' is missing"),
            (
                r#"{"messages": [{"role": "user", "content": 1}]}"#,
                "messages[0].content: must be a string or a list of text parts; found a number",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}"#,
                "messages[0].content[0].type: 'image_url' is not supported; only 'text' is read",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]}"#,
                "messages[0].content[1]: must be an object; found a string",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": ""}]}"#,
                "messages[0].content: an assistant message must not be empty",
            ),
            (r#"{"messages": [{"role": "user", "content": "a", "weight": 2}]}"#, "messages[0].weight: must be 0 or 1"),
            (
                r#"{"messages": [{"role": "user", "content": "a", "weight": 1}]}"#,
                "messages[0].weight: only assistant messages have a weight",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a", "mood": 1}]}"#,
                "messages[0].mood: unknown field; allowed: role, content, name, weight, tool_calls, tool_call_id",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}]}"#,
                "the last message must be the assistant's; it is the user's",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}"#,
                "nothing to train: every assistant message has weight 0",
            ),
        ];
        for (line, message) in cases {
            assert_eq!(&defect_of(line), message, "{line}");
        }
    }

    /// Returns the line that trainers read for this one.
    fn kept(line: &str) -> String {
        serde_json::to_string(&parse_row(1, line.as_bytes()).unwrap()).unwrap()
    }

    const PLAIN: &str =
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello","weight":1}]}"#;

    #[test]
    fn case_09_what_is_not_given_is_written_in_many_ways() {
        for line in [
            r#"{"messages": [{"role": "user", "content": "Hi", "name": null, "weight": null, "tool_calls": null,
                "tool_call_id": null, "function_call": null, "refusal": null, "audio": null}, {"role": "assistant",
                "content": "Hello", "weight": 1.0, "tool_calls": [], "annotations": []}], "tools": [], "functions": [],
                "parallel_tool_calls": null, "text": null, "prompt": null}"#,
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": null}]},
                {"role": "assistant", "content": "Hello", "weight": 1e0, "tool_calls": null}], "tools": null,
                "conversations": null, "anything": null}"#,
        ] {
            assert_eq!(kept(line), PLAIN);
        }
        for (line, row) in [
            (
                r#"{"instruction": "a", "output": "b", "input": null, "system": null, "x": null}"#,
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            ),
            (
                r#"{"id": null, "system": null, "tools": null, "conversations": [{"from": "human", "value": "a",
                    "weight": null}, {"from": "gpt", "value": "b", "weight": 0.0}, {"from": "gpt", "value": "c"}]}"#,
                concat!(
                    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0},"#,
                    r#"{"role":"assistant","content":"c"}]}"#
                ),
            ),
            (r#"{"prompt": "a", "completion": "b", "text": null}"#, r#"{"prompt":"a","completion":"b"}"#),
            (r#"{"text": "a", "messages": null}"#, r#"{"text":"a"}"#),
        ] {
            assert_eq!(kept(line), row);
        }
        for (line, missing) in [
            (r#"{"prompt": null, "completion": "b"}"#, "'prompt' is missing"),
            (r#"{"prompt": "a", "completion": null}"#, "'completion' is missing"),
            (r#"{"instruction": "a", "output": null}"#, "'output' is missing"),
            (r#"{"messages": null}"#, &format!("{NEEDED}; found no field")),
            (r#"{"messages": [null]}"#, "messages[0]: must be an object; found null"),
            (
                r#"{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}"#,
                "messages[0].weight: must be 0 or 1",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "a", "weight": true}]}"#,
                "messages[0].weight: must be 0 or 1",
            ),
        ] {
            assert_eq!(&defect_of(line), missing, "{line}");
        }
    }

    #[test]
    fn case_18_a_developer_is_the_system_and_a_name_is_kept() {
        let line = r#"{"messages": [{"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi", "name": "ann"}, {"role": "assistant", "content": "Hi"}]}"#;
        let row = concat!(
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi","name":"ann"},"#,
            r#"{"role":"assistant","content":"Hi"}]}"#
        );
        assert_eq!(kept(line), row);
    }

    #[test]
    fn text_parts_are_put_together_as_in_chats() {
        let line = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a "},
            {"type": "text", "text": "b"}]}, {"role": "assistant", "content": [{"type": "text", "text": "c"}]}]}"#;
        let row = r#"{"messages":[{"role":"user","content":"a b"},{"role":"assistant","content":"c"}]}"#;
        assert_eq!(kept(line), row);
    }

    #[test]
    fn limit_a_chat_has_an_end() {
        let message = r#"{"role": "assistant", "content": "a"}"#;
        let chat = |count| format!(r#"{{"messages": [{}]}}"#, vec![message; count].join(", "));
        assert!(parse_row(1, chat(MAX_MESSAGES).as_bytes()).is_ok());
        assert_eq!(defect_of(&chat(MAX_MESSAGES + 1)), "messages: 2049 is above the 2048 of one chat; split it");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_placed() {
        let defect = parse_row(7, b"{\"prompt\": \"\xFF\"}").unwrap_err();
        assert_eq!(defect.to_string(), "line 7: not UTF-8: byte 13 of the line is not valid");
        let defect = parse_row(1, b"\xFF\xFE{\0").unwrap_err();
        assert_eq!(defect.message, "the file is UTF-16; save it as UTF-8");
    }

    #[test]
    fn a_sound_file_is_counted() {
        let crlf = format!("\u{feff}{CHAT}\r\n{CHAT}\r\n\r\n");
        let facts = check(crlf.as_bytes()).unwrap();
        assert_eq!(
            facts,
            DatasetFacts { format: RowFormat::Chat, shape: Shape::Chat, rows: 2, bytes: crlf.len() as u64 }
        );
        assert_eq!(check(COMPLETION.as_bytes()).unwrap().rows, 1);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_listed_by_line() {
        let cases = [
            (String::new(), "line 1: the file is empty"),
            ("\n \r\n".into(), "line 1: the file has no rows"),
            (format!("{CHAT}\n\n\n{CHAT}\n"), "line 2: the line is empty, yet rows follow it"),
            (
                format!("{CHAT}\n{COMPLETION}\n"),
                "line 2: a prompt/completion row, but line 1 is a chat row; one format per file",
            ),
            (format!("{TEXT}\n{CHAT}\n"), "line 2: a chat row, but line 1 is a text row; one format per file"),
            (
                format!("{CHAT}\n{}\n{CHAT}", "x".repeat(MAX_LINE_BYTES + 1)),
                "line 2: the line is longer than 1048576 bytes",
            ),
        ];
        for (file, said) in cases {
            assert_eq!(check(file.as_bytes()).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn limit_a_line_of_exactly_the_cap_is_read() {
        let frame = r#"{"prompt": "", "completion": "c"}"#.len();
        let line = format!(r#"{{"prompt": "{}", "completion": "c"}}"#, "p".repeat(MAX_LINE_BYTES - frame));
        assert_eq!(line.len(), MAX_LINE_BYTES);
        assert_eq!(check(format!("{line}\r\n").as_bytes()).unwrap().rows, 1);
        assert_eq!(check(line.as_bytes()).unwrap().rows, 1);
    }

    #[test]
    fn limit_only_the_first_defects_are_kept() {
        let defects = check("x\n".repeat(100).as_bytes()).unwrap_err();
        assert_eq!((defects.first.len(), defects.total), (KEPT_DEFECTS, 100));
        assert!(defects.to_string().ends_with("\n… and 80 more"));
    }

    #[test]
    fn rows_are_handed_over_with_their_lines() {
        let mut seen = Vec::new();
        let mut checker = RowChecker::new();
        checker.push_with(format!("{CHAT}\nnot a row\n{CHAT}").as_bytes(), &mut |line, _| seen.push(line));
        checker.finish_with(&mut |line, _| seen.push(line)).unwrap_err();
        assert_eq!(seen, [1, 3]);
    }

    proptest! {
        /// The result is the same for any split of a file into chunks.
        #[test]
        fn chunking_does_not_matter(
            lines in prop::collection::vec(
                prop::sample::select(vec![CHAT, COMPLETION, TEXT, "", " ", "{", "\r", "é\u{feff}"]),
                0..8,
            ),
            cuts in prop::collection::vec(1usize..40, 1..20),
        ) {
            let file = lines.join("\n").into_bytes();
            let whole = check(&file);
            let mut checker = RowChecker::new();
            let (mut rest, mut cuts) = (&file[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (chunk, more) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                checker.push(chunk);
                rest = more;
            }
            prop_assert_eq!(checker.finish(), whole);
        }

        #[test]
        fn no_bytes_make_it_panic(file in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = check(&file);
        }
    }
}
