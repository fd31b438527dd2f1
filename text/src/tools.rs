//! Detection of tool calls in a model's answer while it streams.
//!
//! The chat template shows in which format a model writes calls. Sources: Qwen 2.5's and Hermes 2 Pro's templates
//! (`<tool_call>` around JSON), Llama 3.1's ("Respond in the format {"name": …, "parameters": …}"), Mistral's before
//! version 11 of its tokenizer (`[TOOL_CALLS]` before a JSON list). A model whose template does not support tools gets
//! a generic format ([`crate::generic_tools`]).
//!
//! A call is an object whose `name` is one of the request's tools, with an object under the format's key of arguments.
//! Everything else is text, and is returned unchanged, even if it begins like a call.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::template::ChatTemplate;

/// The maximum length of a call's head that is parsed before the end of the object, in bytes. A name has 64 at most.
const HEAD_BYTES: usize = 1024;
/// The maximum length of white space that is held back because a call may follow, in bytes.
const WHITE_SPACE_BYTES: usize = 4096;

/// The format in which a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// Hermes and Qwen: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, one after the other.
    Hermes,
    /// Llama 3.1: `{"name": …, "parameters": {…}}` and nothing else.
    Llama,
    /// Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`.
    Mistral,
    /// Generic: `{"name": …, "arguments": {…}}` and nothing else, as the system message requires; for templates without
    /// tools.
    Generic,
}

impl ToolFormat {
    /// Returns the format of the models that use this template.
    #[must_use]
    pub fn of(template: &ChatTemplate) -> Self {
        let source = template.source();
        let has = |text: &str| source.contains(text);
        // Templates that support tools in an unknown format are treated as those without tools.
        if !has("tools") || has("[ARGS]") || has("<function=") {
            Self::Generic
        } else if has("<tool_call>") {
            Self::Hermes
        } else if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has("\"parameters\"") && (has("ipython") || has("python_tag")) {
            Self::Llama
        } else {
            Self::Generic
        }
    }

    /// Returns whether a call is a whole answer, without a marker before it.
    #[must_use]
    pub const fn is_bare(self) -> bool {
        matches!(self, Self::Llama | Self::Generic)
    }

    /// Returns the marker before a call.
    #[must_use]
    pub const fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama | Self::Generic => "{",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// Returns the marker after a call; empty: none.
    #[must_use]
    pub const fn closing(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::Llama | Self::Mistral | Self::Generic => "",
        }
    }

    /// Returns the key of a call's arguments.
    #[must_use]
    pub const fn arguments_key(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral | Self::Generic => "arguments",
            Self::Llama => "parameters",
        }
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Text content.
    Text(String),
    /// The start of a call.
    Call {
        /// The tool's name.
        name: String,
    },
    /// The next part of the last call's arguments, JSON.
    Arguments(String),
}

/// A scanner for calls in a streamed answer.
#[derive(Debug, Clone)]
pub struct ToolScanner {
    format: ToolFormat,
    /// The names of the tools that may be called.
    names: Arc<[String]>,
    held: String,
    /// Markers and white space that are text unless a call follows.
    before: String,
    place: Place,
    /// Flag for an answer with text, which cannot become a call of a bare format any more.
    said: bool,
}

/// The scanner's position in an answer.
#[derive(Debug, Clone)]
enum Place {
    Text,
    /// After the opening marker, or after a call.
    Between {
        /// Flag for a position after a call.
        called: bool,
    },
    /// In an object that may be a call.
    Head(Progress),
    /// In the arguments.
    Arguments(Depth),
    /// After the arguments, before the call's closing brace.
    Tail(Depth),
}

/// The progress of reading an object.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    depth: Depth,
    bytes: usize,
}

/// The nesting state of JSON.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    braces: u32,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    /// Advances by a character; returns `true` if the value that began at depth 0 ends with it.
    fn step(&mut self, character: char) -> bool {
        if self.in_string {
            match character {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match character {
            '"' => self.in_string = true,
            '{' | '[' => self.braces += 1,
            '}' | ']' => self.braces = self.braces.saturating_sub(1),
            _ => {}
        }
        self.braces == 0 && matches!(character, '}' | ']')
    }
}

/// Returns the end of the JSON object or list that `text` begins or continues; `None`: it is incomplete.
fn value_end(text: &str, depth: &mut Depth) -> Option<usize> {
    text.char_indices().find(|(_, character)| depth.step(*character)).map(|(at, character)| at + character.len_utf8())
}

/// A complete call, with its keys in any order.
#[derive(serde::Deserialize)]
struct Whole<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

/// The result of reading the beginning of an object.
enum Head {
    /// A call, and the byte at which its arguments begin.
    Call(String, usize),
    /// Not a call.
    Text,
    /// Undecided.
    Open,
}

impl ToolScanner {
    /// Creates a scanner at the beginning of an answer, for tools with these names.
    #[must_use]
    pub fn new(format: ToolFormat, names: Arc<[String]>) -> Self {
        Self { format, names, held: String::new(), before: String::new(), place: Place::Text, said: false }
    }

    /// Adds the next chunk; returns the parts that are certain.
    pub fn push(&mut self, piece: &str) -> Vec<Found> {
        self.held.push_str(piece);
        let mut found = Vec::new();
        while self.step(&mut found) {}
        found
    }

    /// Ends the answer: returns the text that was held back.
    #[must_use]
    pub fn finish(self) -> Vec<Found> {
        match self.place {
            Place::Text | Place::Head(_) | Place::Between { called: false } => text(self.before + &self.held),
            Place::Arguments(_) if self.held.is_empty() => Vec::new(),
            Place::Arguments(_) => vec![Found::Arguments(self.held)],
            Place::Between { called: true } | Place::Tail(_) => Vec::new(),
        }
    }

    /// Processes the held text; returns `true` if another step is needed.
    fn step(&mut self, found: &mut Vec<Found>) -> bool {
        match self.place {
            Place::Text if self.format.is_bare() => self.bare_text(found),
            Place::Text => self.text(found),
            Place::Between { called } => self.between(called, found),
            Place::Head(progress) => self.head(progress, found),
            Place::Arguments(depth) => self.arguments(depth, found),
            Place::Tail(depth) => self.tail(depth),
        }
    }

    fn text(&mut self, found: &mut Vec<Found>) -> bool {
        let opening = self.format.opening();
        if let Some(at) = self.held.find(opening) {
            // White space before a call belongs to it.
            let free = self.held[..at].trim_end().len();
            let rest = self.held.split_off(at + opening.len());
            let mark = self.held.split_off(free);
            if free > 0 {
                found.extend(text(std::mem::take(&mut self.before) + &self.held));
            }
            self.before.push_str(&mark);
            self.held = rest;
            self.place = Place::Between { called: false };
            return true;
        }
        let free = self.held.len() - beginning_of(opening, &self.held);
        let free = if free > WHITE_SPACE_BYTES { free } else { self.held[..free].trim_end().len() };
        if free > 0 {
            let rest = self.held.split_off(free);
            found.extend(text(std::mem::take(&mut self.before) + &std::mem::replace(&mut self.held, rest)));
        }
        false
    }

    /// Scans for a call in a format without markers: only an answer that begins with a brace is a call.
    fn bare_text(&mut self, found: &mut Vec<Found>) -> bool {
        let trimmed = self.held.trim_start();
        if trimmed.is_empty() && !self.said && self.held.len() <= WHITE_SPACE_BYTES {
            return false;
        }
        if trimmed.starts_with('{') && !self.said {
            let brace = self.held.len() - trimmed.len();
            let rest = self.held.split_off(brace);
            self.before.push_str(&std::mem::replace(&mut self.held, rest));
            self.place = Place::Head(Progress::default());
            return true;
        }
        self.said = true;
        found.extend(text(std::mem::take(&mut self.before) + &std::mem::take(&mut self.held)));
        false
    }

    /// Skips separators between calls; returns to text if no call follows.
    fn between(&mut self, called: bool, found: &mut Vec<Found>) -> bool {
        let skipped =
            |c: char| c.is_whitespace() || (self.format == ToolFormat::Mistral && matches!(c, '[' | ',' | ']'));
        let kept = self.held.trim_start_matches(skipped);
        let marks = self.held.len() - kept.len();
        let rest = self.held.split_off(marks);
        self.before.push_str(&std::mem::replace(&mut self.held, rest));
        let closing = self.format.closing();
        if called && !closing.is_empty() {
            if let Some(rest) = self.held.strip_prefix(closing) {
                self.held = rest.to_owned();
                self.before.clear();
                self.place = Place::Text;
                return true;
            }
            if closing.starts_with(self.held.as_str()) {
                return false;
            }
        }
        if self.held.is_empty() {
            return false;
        }
        if self.held.starts_with('{') {
            self.place = Place::Head(Progress::default());
        } else {
            self.is_text(found);
        }
        true
    }

    fn head(&mut self, mut progress: Progress, found: &mut Vec<Found>) -> bool {
        match read_head(&self.held, self.format.arguments_key(), &self.names) {
            Head::Call(name, at) => {
                found.push(Found::Call { name });
                self.held.drain(..at);
                self.before.clear();
                self.place = Place::Arguments(Depth::default());
                return true;
            }
            Head::Text => {
                self.is_text(found);
                return true;
            }
            Head::Open => {}
        }
        let Some(end) = value_end(&self.held[progress.bytes..], &mut progress.depth) else {
            self.place = Place::Head(Progress { bytes: self.held.len(), ..progress });
            return false;
        };
        let rest = self.held.split_off(progress.bytes + end);
        match self.whole_call(&self.held) {
            Some((name, arguments)) => {
                found.push(Found::Call { name });
                found.push(Found::Arguments(arguments));
                self.before.clear();
                self.held = rest;
                self.place = Place::Between { called: true };
            }
            None => {
                self.is_text(found);
                self.held = rest;
            }
        }
        true
    }

    /// Parses an object as a call, if it is one. Some models write the arguments as JSON in a string.
    fn whole_call(&self, object: &str) -> Option<(String, String)> {
        let call: Whole<'_> = serde_json::from_str(object).ok()?;
        let given = if self.format == ToolFormat::Llama { call.parameters } else { call.arguments }?.get();
        let inner = serde_json::from_str::<String>(given).unwrap_or_else(|_| given.to_owned());
        let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&inner).is_ok();
        (is_object && self.names.contains(&call.name)).then_some((call.name, inner))
    }

    /// Returns the held text as text: it is not a call.
    fn is_text(&mut self, found: &mut Vec<Found>) {
        found.extend(text(std::mem::take(&mut self.before) + &std::mem::take(&mut self.held)));
        (self.place, self.said) = (Place::Text, true);
    }

    fn arguments(&mut self, mut depth: Depth, found: &mut Vec<Found>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let end = value_end(&self.held, &mut depth);
        let rest = self.held.split_off(end.unwrap_or(self.held.len()));
        found.push(Found::Arguments(std::mem::replace(&mut self.held, rest)));
        let inside = Depth { braces: 1, ..Depth::default() };
        self.place = if end.is_some() { Place::Tail(inside) } else { Place::Arguments(depth) };
        true
    }

    fn tail(&mut self, mut depth: Depth) -> bool {
        match value_end(&self.held, &mut depth) {
            Some(end) => {
                self.held.drain(..end);
                self.place = Place::Between { called: true };
                true
            }
            None => {
                self.held.clear();
                self.place = Place::Tail(depth);
                false
            }
        }
    }
}

fn text(text: String) -> Vec<Found> {
    if text.is_empty() { Vec::new() } else { vec![Found::Text(text)] }
}

/// Returns the length of the longest suffix of `text` that is a proper prefix of `marker`.
fn beginning_of(marker: &str, text: &str) -> usize {
    (1..marker.len()).rev().find(|&length| text.ends_with(&marker[..length])).unwrap_or(0)
}

/// Reads `{"name": "…", "<key>": {`. An object with its keys in another order is only recognized at its end.
fn read_head(text: &str, key: &str, names: &[String]) -> Head {
    fn after<'a>(rest: &'a str, what: &str) -> Option<&'a str> {
        rest.trim_start().strip_prefix(what)
    }
    let text = &text[..text.floor_char_boundary(HEAD_BYTES)];
    let value = ["{", "\"name\"", ":"].iter().try_fold(text, |rest, what| after(rest, what));
    let Some(rest) = value.map(str::trim_start) else { return Head::Open };
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let name = match values.next() {
        Some(Ok(name)) if names.contains(&name) => name,
        Some(Ok(_)) => return Head::Text,
        Some(Err(error)) if !error.is_eof() => return Head::Text,
        _ => return Head::Open,
    };
    let rest = &rest[values.byte_offset()..];
    let quoted = format!("\"{key}\"");
    let value = [",", &quoted, ":"].iter().try_fold(rest, |rest, what| after(rest, what));
    match value.map(str::trim_start) {
        Some(rest) if rest.starts_with('{') => Head::Call(name, text.len() - rest.len()),
        _ => Head::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(format: ToolFormat, answer: &str, cut: usize) -> (String, Vec<(String, String)>) {
        let names: Arc<[String]> = ["a", "b", "f"].map(str::to_owned).into();
        let mut scanner = ToolScanner::new(format, names);
        let (mut said, mut calls): (String, Vec<(String, String)>) = Default::default();
        let letters: Vec<char> = answer.chars().collect();
        let pieces = letters.chunks(cut).map(|piece| piece.iter().collect::<String>());
        let mut found: Vec<Found> = pieces.flat_map(|piece| scanner.push(&piece)).collect();
        found.extend(scanner.finish());
        for found in found {
            match found {
                Found::Text(text) => said += &text,
                Found::Call { name } => calls.push((name, String::new())),
                Found::Arguments(text) => calls.last_mut().unwrap().1 += &text,
            }
        }
        (said, calls)
    }

    #[test]
    fn calls_are_found_however_the_answer_is_cut() {
        use ToolFormat::{Generic, Hermes, Llama, Mistral};
        for (format, answer, said, calls) in [
            (Hermes, "just text < tool", "just text < tool", vec![]),
            (
                Hermes,
                "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}\\\"{\"}}\n</tool_call>",
                "Let me see.",
                vec![("a", r#"{"x": "}\"{"}"#)],
            ),
            (
                Hermes,
                "<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call>\n\
                 <tool_call>{\"arguments\": {\"y\": [1]}, \"name\": \"b\"}\n</tool_call> done",
                " done",
                vec![("a", "{}"), ("b", r#"{"y": [1]}"#)],
            ),
            (Hermes, "<tool_call>{\"nome\": 1}</tool_call>", "<tool_call>{\"nome\": 1}</tool_call>", vec![]),
            (
                Hermes,
                "<tool_call>{\"name\": \"z\", \"arguments\": {}}</tool_call> x",
                "<tool_call>{\"name\": \"z\", \"arguments\": {}}</tool_call> x",
                vec![],
            ),
            (Hermes, "a \n<tool_call> b", "a \n<tool_call> b", vec![]),
            (
                Hermes,
                "<tool_call>{\"name\": \"a\", \"arguments\": 1}</tool_call>",
                "<tool_call>{\"name\": \"a\", \"arguments\": 1}</tool_call>",
                vec![],
            ),
            (
                Hermes,
                "<tool_call>{\"name\": \"a\", \"arguments\": {}, \"id\": \"}\"}</tool_call>!",
                "!",
                vec![("a", "{}")],
            ),
            (Hermes, "<tool_call>{\"name\": \"a\", \"arg", "<tool_call>{\"name\": \"a\", \"arg", vec![]),
            (Hermes, "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": 1", "", vec![("a", "{\"x\": 1")]),
            (Llama, " {\"name\": \"f\", \"parameters\": {\"q\": \"é\"}}", "", vec![("f", "{\"q\": \"é\"}")]),
            (Llama, "{\"weather\": \"fine\"} is JSON", "{\"weather\": \"fine\"} is JSON", vec![]),
            (
                Llama,
                "It is {\"name\": \"f\", \"parameters\": {}}",
                "It is {\"name\": \"f\", \"parameters\": {}}",
                vec![],
            ),
            (
                Llama,
                "\n{\"name\": \"Alice\", \"age\": 30} and {\"name\": \"f\", \"parameters\": {}}",
                "\n{\"name\": \"Alice\", \"age\": 30} and {\"name\": \"f\", \"parameters\": {}}",
                vec![],
            ),
            (Llama, "{\"name\": \"f\", \"arguments\": {}}", "{\"name\": \"f\", \"arguments\": {}}", vec![]),
            (Llama, "{\"parameters\": {\"a\": 1}, \"name\": \"f\"}", "", vec![("f", "{\"a\": 1}")]),
            (Llama, "{ \"name\" : \"f\" , \"parameters\" : {} }", "", vec![("f", "{}")]),
            (Generic, "{\"name\": \"f\", \"arguments\": {\"a\": [1]}}\n", "", vec![("f", "{\"a\": [1]}")]),
            (Mistral, "[TOOL_CALLS] [{\"name\": \"z\"}]", "[TOOL_CALLS] [{\"name\": \"z\"}]", vec![]),
            (
                Mistral,
                "[TOOL_CALLS] [{\"name\": \"a\", \"arguments\": {\"x\": 1}}, {\"name\": \"b\", \"arguments\": \"{}\"}]",
                "",
                vec![("a", "{\"x\": 1}"), ("b", "{}")],
            ),
        ] {
            let calls: Vec<_> = calls.into_iter().map(|(name, arguments)| (name.into(), arguments.into())).collect();
            for cut in [1, 2, 3, 7, 1000] {
                assert_eq!(scan(format, answer, cut), (said.to_owned(), calls.clone()), "{answer} by {cut}");
            }
        }
    }

    /// The answers of the case, whole and streamed: an object whose name is not a tool's, or without arguments, is
    /// text.
    #[test]
    fn case_01_an_object_that_calls_no_tool_is_text_whole_and_streamed() {
        for answer in [
            "{\"name\": \"Alice\", \"age\": 30}",
            "{ \"name\" : \"Alice\" , \"age\" : 30 }",
            "{\"name\":\"a\",\"age\":30}",
            "{\"verdict\":\"ok\"}",
            "{\"name\": \"a\", \"parameters\": [1]}",
            "{\"name\": \"a\", \"parameters\": null}",
            "{\"name\": 1, \"parameters\": {}}",
        ] {
            for cut in [1, 2, 3, 7, 1000] {
                assert_eq!(scan(ToolFormat::Llama, answer, cut), (answer.to_owned(), vec![]), "{answer} by {cut}");
            }
        }
    }

    /// A long object is read once, not once per chunk.
    #[test]
    fn a_long_answer_that_may_be_a_call_costs_no_more_than_its_length() {
        let began = std::time::Instant::now();
        let answer = format!("{{\"parameters\": {{\"a\": \"{}\"}}, \"name\": \"f\"}}", "x".repeat(1 << 20));
        let (said, calls) = scan(ToolFormat::Llama, &answer, 4);
        assert_eq!((said.as_str(), calls[0].1.len()), ("", (1 << 20) + 9));
        let white = " ".repeat(1 << 20);
        assert_eq!(scan(ToolFormat::Hermes, &white, 4).0, white);
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
