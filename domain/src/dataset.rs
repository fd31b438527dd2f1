//! A dataset's rows: what one line of JSONL may say, and the check of a whole file in constant memory.
//!
//! Three formats are trained on: chat (`{"messages": [...]}`), prompt/completion (`{"prompt": …, "completion": …}`) and
//! text (`{"text": …}`); preference rows are known, but nothing learns from them. Other shapes become one of these. One
//! shape per file. Nothing is corrected or dropped: whatever is not understood is a defect with its line number. Tokens
//! are not counted here; that is `attune-text`'s.

mod checker;
mod json;
mod shapes;

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use json::Json;

pub use checker::{DatasetFacts, Defects, RowChecker};

/// The longest line that is read, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// The most messages in a chat: the work of finding what is trained grows with their square.
pub const MAX_MESSAGES: usize = 2048;

/// How many defects are kept word for word; the rest are counted.
pub const KEPT_DEFECTS: usize = 20;

/// Which kind of rows a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// `{"messages": [...]}`.
    Chat,
    /// `{"prompt": …, "completion": …}`.
    Completion,
    /// `{"text": …}`.
    Text,
    /// A chat with a better and a worse answer. Nothing learns from it yet.
    Preference,
}

impl RowFormat {
    const ALL: [Self; 4] = [Self::Chat, Self::Completion, Self::Text, Self::Preference];

    /// The word in SQL and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Text => "text",
            Self::Preference => "preference",
        }
    }

    /// The format of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat",
            Self::Completion => "prompt/completion",
            Self::Text => "text",
            Self::Preference => "preference",
        })
    }
}

/// How a row is written by its user. Alpaca and ShareGPT rows become chats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// The word in SQL and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Text => "text",
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
            Self::Preference => "preference",
        }
    }

    /// Whether a row of this shape is what a trainer reads.
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        !matches!(self, Self::Alpaca | Self::ShareGpt)
    }

    /// The shape of a row with these fields, if it is any.
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

/// Who speaks a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sets the scene.
    System,
    /// Asks.
    User,
    /// Answers; what it says is what is trained.
    Assistant,
}

impl Role {
    /// The word on the wire and in chat templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// `Some(0)`: an assistant's turn that is read but not trained. `None` means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    /// The speaker's name, handed to the chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message without weight and name.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), weight: None, name: None }
    }

    /// Whether the loss is taken on this message.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.role == Role::Assistant && self.weight != Some(0)
    }
}

/// One training example. It is written as the line that a trainer reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Row {
    /// A chat whose last message is the assistant's.
    Chat {
        /// At least one.
        messages: Vec<Message>,
    },
    /// A text and what follows it.
    Completion {
        /// Read, not trained; may be empty.
        prompt: String,
        /// Trained; not empty.
        completion: String,
    },
    /// A document.
    Text {
        /// Trained; not empty.
        text: String,
    },
    /// What is asked, and two answers to it.
    Preference {
        /// At least one message.
        #[serde(serialize_with = "as_input")]
        input: Vec<Message>,
        /// The better answer.
        #[serde(rename = "preferred_output")]
        preferred: Vec<Message>,
        /// The worse one.
        #[serde(rename = "non_preferred_output")]
        non_preferred: Vec<Message>,
    },
}

fn as_input<S: Serializer>(messages: &[Message], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map([("messages", messages)])
}

impl Row {
    /// Which format this row is of.
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

/// What is wrong with one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct RowDefect {
    /// The line, from 1.
    pub line: u64,
    /// A sentence for the user, without the line.
    pub message: String,
}

/// Reads one line. `line_no` counts from 1; on line 1 a UTF-8 byte order mark is passed over.
///
/// # Errors
/// [`RowDefect`], the first one met in the line.
pub fn parse_row(line_no: u64, line: &[u8]) -> Result<Row, RowDefect> {
    read(line_no, line).map(|(_, row)| row).map_err(|message| RowDefect { line: line_no, message })
}

fn read(line_no: u64, line: &[u8]) -> Result<(Shape, Row), String> {
    let line = if line_no == 1 { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
    let text = std::str::from_utf8(line).map_err(|e| {
        if line_no == 1 && (line.starts_with(b"\xFF\xFE") || line.starts_with(b"\xFE\xFF")) {
            "the file is UTF-16; save it as UTF-8".to_owned()
        } else {
            format!("not UTF-8: byte {} of the line is not valid", e.valid_up_to() + 1)
        }
    })?;
    let json = serde_json::from_str(text).map_err(|e| not_json(&e))?;
    let fields = match json {
        Json::Object(fields) => fields,
        other => return Err(format!("must be a JSON object; found {}", other.kind())),
    };
    let Some(shape) = Shape::of(fields.iter().map(|(name, _)| name)) else {
        let found: Vec<_> = fields.iter().map(|(name, _)| format!("'{name}'")).collect();
        let found = if found.is_empty() { "no field".into() } else { found.join(", ") };
        return Err(format!("{NEEDED}; found {found}"));
    };
    let row = match shape {
        Shape::Chat => chat(fields),
        Shape::Completion => completion(fields),
        Shape::Text => document(fields),
        Shape::Alpaca => shapes::alpaca(fields),
        Shape::ShareGpt => shapes::sharegpt(fields),
        Shape::Preference => shapes::preference(fields),
    };
    row.map(|row| (shape, row))
}

/// The fields that tell what a row is.
const NEEDED: &str = "needs 'messages', or 'prompt' and 'completion', or 'text', or 'instruction' and 'output', or \
                      'conversations', or 'input', 'preferred_output' and 'non_preferred_output'";

fn not_json(error: &serde_json::Error) -> String {
    let whole = error.to_string();
    let reason = whole.split(" at line ").next().unwrap_or(&whole);
    let column = error.column();
    match error.classify() {
        serde_json::error::Category::Eof => {
            format!("not JSON: {reason} (column {column}); each row must be whole on one line")
        }
        serde_json::error::Category::Data => format!("{reason} (column {column})"),
        _ => format!("not JSON: {reason} (column {column})"),
    }
}

fn chat(fields: Vec<(String, Json)>) -> Result<Row, String> {
    let mut list = None;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("messages", Json::List(messages)) => list = Some(messages),
            ("messages", other) => return Err(format!("messages: must be a list; found {}", other.kind())),
            ("tools" | "functions" | "parallel_tool_calls" | "function_call" | "tool_choice", _) => {
                return Err(format!("{name}: training on tool calls is not supported"));
            }
            _ => return Err(format!("{name}: unknown field; a chat row has only 'messages'")),
        }
    }
    checked_chat(messages("messages", list.unwrap_or_default())?)
}

/// Reads a list of messages that stands at `place` in its row.
fn messages(place: &str, list: Vec<Json>) -> Result<Vec<Message>, String> {
    if list.len() > MAX_MESSAGES {
        return Err(format!("{place}: {} is above the {MAX_MESSAGES} of one chat; split it", list.len()));
    }
    list.into_iter()
        .enumerate()
        .map(|(i, value)| message(value).map_err(|reason| format!("{place}[{i}]{reason}")))
        .collect()
}

/// A chat from which something is learnt.
fn checked_chat(messages: Vec<Message>) -> Result<Row, String> {
    match messages.last() {
        Some(_) if messages.len() > MAX_MESSAGES => {
            Err(format!("messages: {} is above the {MAX_MESSAGES} of one chat; split it", messages.len()))
        }
        None => Err("messages: the list is empty".into()),
        Some(last) if last.role != Role::Assistant => {
            Err(format!("the last message must be the assistant's; it is the {}'s", last.role.as_str()))
        }
        Some(_) if !messages.iter().any(Message::is_trained) => {
            Err("nothing to train: every assistant message has weight 0".into())
        }
        Some(_) => Ok(Row::Chat { messages }),
    }
}

/// The reason starts with `.field: …` or `: …`; the caller puts the message's place before it.
fn message(value: Json) -> Result<Message, String> {
    let Json::Object(fields) = value else {
        return Err(format!(": must be an object; found {}", value.kind()));
    };
    let (mut role, mut content, mut weight, mut name) = (None, None, None, None);
    for (field, value) in fields {
        match (field.as_str(), value) {
            ("role", Json::Text(word)) => role = Some(role_named(&word)?),
            ("content", Json::Text(text)) => content = Some(text),
            ("content", Json::List(_)) => {
                return Err(".content: content parts are not supported; give one string".into());
            }
            ("name", Json::Text(text)) => name = Some(text),
            ("weight", Json::Number(Some(given @ (0 | 1)))) => weight = Some(u8::from(given == 1)),
            ("weight", _) => return Err(".weight: must be 0 or 1".into()),
            ("tool_calls" | "function_call" | "tool_call_id", _) => {
                return Err(format!(".{field}: training on tool calls is not supported"));
            }
            ("role" | "content" | "name", other) => {
                return Err(format!(".{field}: must be a string; found {}", other.kind()));
            }
            _ => return Err(format!(".{field}: unknown field; allowed: role, content, name, weight")),
        }
    }
    let role = role.ok_or(": 'role' is missing")?;
    let content = content.ok_or(": 'content' is missing")?;
    if role == Role::Assistant && content.is_empty() {
        return Err(".content: an assistant message must not be empty".into());
    }
    if role != Role::Assistant && weight.is_some() {
        return Err(".weight: only assistant messages have a weight".into());
    }
    Ok(Message { role, content, weight, name })
}

fn role_named(word: &str) -> Result<Role, String> {
    match word {
        "system" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => Err(format!(".role: '{word}': training on tool calls is not supported")),
        _ => Err(format!(".role: '{word}' is unknown; allowed: system, user, assistant")),
    }
}

fn completion(fields: Vec<(String, Json)>) -> Result<Row, String> {
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

fn document(fields: Vec<(String, Json)>) -> Result<Row, String> {
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
        assert_eq!(row, Row::Chat { messages });
        let row = parse_row(1, COMPLETION.as_bytes()).unwrap();
        assert_eq!(row, Row::Completion { prompt: "2+2=".into(), completion: "4".into() });
        let row = parse_row(1, TEXT.as_bytes()).unwrap();
        assert_eq!(row, Row::Text { text: "Once upon a time".into() });
        for format in RowFormat::ALL {
            assert_eq!(RowFormat::from_name(format.name()), Some(format));
        }
    }

    #[test]
    fn weight_and_name_are_kept() {
        let line = r#"{"messages": [{"role": "user", "content": "", "name": "ann"},
            {"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b", "weight": 1}]}"#;
        let Row::Chat { messages } = parse_row(1, line.as_bytes()).unwrap() else { panic!() };
        assert_eq!(messages[0].name.as_deref(), Some("ann"));
        assert_eq!(messages.iter().map(Message::is_trained).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn every_defect_is_named() {
        let cases: &[(&str, &str)] = &[
            ("{", "not JSON: EOF while parsing an object (column 1); each row must be whole on one line"),
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
            (r#"{"messages": [], "tools": []}"#, "tools: training on tool calls is not supported"),
            (r#"{"messages": [], "x": 1}"#, "x: unknown field; a chat row has only 'messages'"),
            (r#"{"messages": ["a"]}"#, "messages[0]: must be an object; found a string"),
            (r#"{"messages": [{"content": "a"}]}"#, "messages[0]: 'role' is missing"),
            (r#"{"messages": [{"role": "user"}]}"#, "messages[0]: 'content' is missing"),
            (
                r#"{"messages": [{"role": "bot", "content": "a"}]}"#,
                "messages[0].role: 'bot' is unknown; allowed: system, user, assistant",
            ),
            (
                r#"{"messages": [{"role": "tool", "content": "a"}]}"#,
                "messages[0].role: 'tool': training on tool calls is not supported",
            ),
            (
                r#"{"messages": [{"role": "user", "content": null}]}"#,
                "messages[0].content: must be a string; found null",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}"#,
                "messages[0].content: content parts are not supported; give one string",
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
                "messages[0].mood: unknown field; allowed: role, content, name, weight",
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

    #[test]
    fn a_chat_has_an_end() {
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
    fn a_line_of_exactly_the_cap_is_read() {
        let frame = r#"{"prompt": "", "completion": "c"}"#.len();
        let line = format!(r#"{{"prompt": "{}", "completion": "c"}}"#, "p".repeat(MAX_LINE_BYTES - frame));
        assert_eq!(line.len(), MAX_LINE_BYTES);
        assert_eq!(check(format!("{line}\r\n").as_bytes()).unwrap().rows, 1);
        assert_eq!(check(line.as_bytes()).unwrap().rows, 1);
    }

    #[test]
    fn only_the_first_defects_are_kept() {
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
        /// However a file is cut into chunks, the same is said of it.
        #[test]
        fn chunking_does_not_matter(
            lines in prop::collection::vec(prop::sample::select(vec![CHAT, COMPLETION, TEXT, "", " ", "{", "\r", "é\u{feff}"]), 0..8),
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
