//! Tool calls as models write them, read out of an answer while it comes.
//!
//! Which way a model writes them is seen by its chat template. Sources: Qwen 2.5's and Hermes 2 Pro's templates
//! (`<tool_call>` around JSON), Llama 3.1's ("Respond in the format {"name": …, "parameters": …}"), Mistral's before
//! version 11 of its tokenizer (`[TOOL_CALLS]` before a JSON list). A text that begins like a call and is none is text.

use serde_json::value::RawValue;

use crate::template::ChatTemplate;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, one after the other.
    Hermes,
    /// `{"name": …, "parameters": {…}}` and nothing else.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`
    Mistral,
}

impl ToolFormat {
    /// How the models of this template write calls; `None`: it does not take tools, or in a way that is not known here.
    #[must_use]
    pub fn of(template: &ChatTemplate) -> Option<Self> {
        let source = template.source();
        let has = |text: &str| source.contains(text);
        if !has("tools") || has("[ARGS]") || has("<function=") {
            return None;
        }
        if has("<tool_call>") {
            return Some(Self::Hermes);
        }
        if has("[TOOL_CALLS]") {
            return Some(Self::Mistral);
        }
        (has("\"parameters\"") && (has("ipython") || has("python_tag"))).then_some(Self::Llama)
    }

    /// What stands before a call.
    #[must_use]
    pub const fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "{",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// What stands behind a call; empty: nothing.
    #[must_use]
    pub const fn closing(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::Llama | Self::Mistral => "",
        }
    }

    /// The key of a call's arguments.
    #[must_use]
    pub const fn arguments_key(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama => "parameters",
        }
    }
}

/// What is found in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Text.
    Text(String),
    /// A call begins.
    Call {
        /// The tool's name.
        name: String,
    },
    /// More of the last call's arguments: JSON.
    Arguments(String),
}

/// Looks for calls in an answer that comes in pieces.
#[derive(Debug, Clone)]
pub struct ToolScanner {
    format: ToolFormat,
    held: String,
    place: Place,
    /// Text was said: a call of [`ToolFormat::Llama`] cannot come any more.
    said: bool,
}

/// Where in an answer.
#[derive(Debug, Clone)]
enum Place {
    Text,
    /// Behind the opening, or between two calls.
    Between,
    /// In a call whose name is not known yet.
    Head,
    /// In the arguments.
    Arguments(Depth),
    /// Behind the arguments, before the call's last brace.
    Tail,
}

/// How deep in JSON.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    braces: u32,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    /// Takes a character; `true` if the value that began at depth 0 ends with it.
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

/// Where the JSON object or list that `text` begins with ends; `None`: it is not whole.
fn value_end(text: &str, depth: &mut Depth) -> Option<usize> {
    text.char_indices().find(|(_, character)| depth.step(*character)).map(|(at, character)| at + character.len_utf8())
}

/// A call as a whole, with its keys in any order.
#[derive(serde::Deserialize)]
struct Whole<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl ToolScanner {
    /// A scanner that has seen nothing.
    #[must_use]
    pub const fn new(format: ToolFormat) -> Self {
        Self { format, held: String::new(), place: Place::Text, said: false }
    }

    /// Takes the next piece; gives what is certain.
    pub fn push(&mut self, piece: &str) -> Vec<Found> {
        self.held.push_str(piece);
        let mut found = Vec::new();
        while self.step(&mut found) {}
        found
    }

    /// No text follows: what was held back is what it is.
    #[must_use]
    pub fn finish(mut self) -> Vec<Found> {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Text => text(held),
            Place::Head => text(format!("{}{held}", self.before_call())),
            Place::Arguments(_) => {
                if held.is_empty() {
                    Vec::new()
                } else {
                    vec![Found::Arguments(held)]
                }
            }
            Place::Between | Place::Tail => Vec::new(),
        }
    }

    /// What was taken away before a call that is none.
    const fn before_call(&self) -> &'static str {
        match self.format {
            ToolFormat::Llama => "",
            ToolFormat::Hermes | ToolFormat::Mistral => self.format.opening(),
        }
    }

    /// `true`: look again.
    fn step(&mut self, found: &mut Vec<Found>) -> bool {
        match self.place {
            Place::Text => self.text(found),
            Place::Between => self.between(),
            Place::Head => self.head(found),
            Place::Arguments(depth) => self.arguments(depth, found),
            Place::Tail => self.tail(),
        }
    }

    fn text(&mut self, found: &mut Vec<Found>) -> bool {
        if self.format == ToolFormat::Llama {
            return self.llama_text(found);
        }
        let opening = self.format.opening();
        if let Some(at) = self.held.find(opening) {
            let rest = self.held.split_off(at + opening.len());
            self.held.truncate(at);
            let before = std::mem::replace(&mut self.held, rest);
            found.extend(text(before.trim_end().to_owned()));
            self.place = Place::Between;
            return true;
        }
        // White space before a call belongs to it.
        let free = self.held.len() - beginning_of(opening, &self.held);
        let free = self.held[..free].trim_end().len();
        let rest = self.held.split_off(free);
        found.extend(text(std::mem::replace(&mut self.held, rest)));
        false
    }

    /// Only an answer that begins with a brace is a call.
    fn llama_text(&mut self, found: &mut Vec<Found>) -> bool {
        let trimmed = self.held.trim_start();
        if trimmed.is_empty() && !self.said {
            return false;
        }
        if trimmed.starts_with('{') && !self.said {
            self.held = trimmed.to_owned();
            self.place = Place::Head;
            return true;
        }
        self.said = true;
        found.extend(text(std::mem::take(&mut self.held)));
        false
    }

    /// Skips what stands between calls; back to text where none follows.
    fn between(&mut self) -> bool {
        let skipped =
            |c: char| c.is_whitespace() || (self.format == ToolFormat::Mistral && matches!(c, '[' | ',' | ']'));
        self.held = self.held.trim_start_matches(skipped).to_owned();
        let closing = self.format.closing();
        if let Some(rest) = self.held.strip_prefix(closing).filter(|_| !closing.is_empty()) {
            (self.held, self.place) = (rest.to_owned(), Place::Text);
            return true;
        }
        if self.held.is_empty() || (closing.starts_with(self.held.as_str()) && !closing.is_empty()) {
            return false;
        }
        self.place = if self.held.starts_with('{') { Place::Head } else { Place::Text };
        true
    }

    fn head(&mut self, found: &mut Vec<Found>) -> bool {
        if let Some((name, at)) = read_head(&self.held, self.format.arguments_key()) {
            found.push(Found::Call { name });
            self.held.drain(..at);
            self.place = Place::Arguments(Depth::default());
            return true;
        }
        let Some(end) = value_end(&self.held, &mut Depth::default()) else { return false };
        let rest = self.held.split_off(end);
        let object = std::mem::replace(&mut self.held, rest);
        match serde_json::from_str::<Whole<'_>>(&object) {
            Ok(call) => {
                found.push(Found::Call { name: call.name });
                found.push(Found::Arguments(plain_arguments(call.arguments)));
                self.place = Place::Between;
            }
            Err(_) => {
                found.extend(text(format!("{}{object}", self.before_call())));
                (self.place, self.said) = (Place::Text, true);
            }
        }
        true
    }

    fn arguments(&mut self, mut depth: Depth, found: &mut Vec<Found>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let end = value_end(&self.held, &mut depth);
        let rest = self.held.split_off(end.unwrap_or(self.held.len()));
        found.push(Found::Arguments(std::mem::replace(&mut self.held, rest)));
        self.place = if end.is_some() { Place::Tail } else { Place::Arguments(depth) };
        true
    }

    fn tail(&mut self) -> bool {
        match self.held.find('}') {
            Some(at) => {
                self.held.drain(..=at);
                self.place = Place::Between;
                true
            }
            None => false,
        }
    }
}

fn text(text: String) -> Vec<Found> {
    if text.is_empty() { Vec::new() } else { vec![Found::Text(text)] }
}

/// The length of the longest end of `text` that begins `marker`.
fn beginning_of(marker: &str, text: &str) -> usize {
    (1..marker.len()).rev().find(|&length| text.ends_with(&marker[..length])).unwrap_or(0)
}

/// Reads `{"name": "…", "<key>": {`: the name, and where the arguments begin; `None`: that is not all there, or the call
/// is written in another way.
fn read_head(text: &str, key: &str) -> Option<(String, usize)> {
    let after = |rest: &'_ str, what: &str| rest.trim_start().strip_prefix(what).map(|rest| rest.len());
    let mut rest = text;
    for what in ["{", "\"name\"", ":"] {
        rest = &rest[rest.len() - after(rest, what)?..];
    }
    rest = rest.trim_start();
    let mut names = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let name = names.next()?.ok()?;
    rest = &rest[names.byte_offset()..];
    for what in [",", &format!("\"{key}\""), ":"] {
        rest = &rest[rest.len() - after(rest, what)?..];
    }
    rest = rest.trim_start();
    rest.starts_with('{').then(|| (name, text.len() - rest.len()))
}

/// Arguments as JSON: some models write it into a string.
fn plain_arguments(raw: Option<&RawValue>) -> String {
    let Some(raw) = raw else { return "{}".to_owned() };
    serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(format: ToolFormat, answer: &str, cut: usize) -> (String, Vec<(String, String)>) {
        let mut scanner = ToolScanner::new(format);
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
        use ToolFormat::{Hermes, Llama, Mistral};
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
                "<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call>\n<tool_call>{\"arguments\": {\"y\": [1]}, \"name\": \"b\"}\n</tool_call> done",
                " done",
                vec![("a", "{}"), ("b", r#"{"y": [1]}"#)],
            ),
            (Hermes, "<tool_call>{\"nome\": 1}</tool_call>", "<tool_call>{\"nome\": 1}</tool_call>", vec![]),
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
}
