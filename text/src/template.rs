//! Chat templates, rendered as in transformers: Jinja with `trim_blocks` and `lstrip_blocks`, Python's string and dict
//! methods, `raise_exception`, `strftime_now`, loop controls and the `generation` tag.
//!
//! Source: `_compile_jinja_template` and `render_jinja_template` in transformers' `utils/chat_template_utils.py`. A
//! template is untrusted code: it runs within the limits of `crate::sandbox`, and the only clock that it can read is
//! the time that the caller passes.

use std::collections::BTreeMap;
use std::fmt::Write;

use attune_domain::{dataset::Message, digest::Sha256};
use chrono::{DateTime, Utc};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context};
use serde::Serialize;
use sha2::Digest;

use crate::error::{EncodeError, TextError};
use crate::json::tojson;
use crate::sandbox::{
    builtins,
    meter::{Allowance, Metered, Printed, prints_too_much},
    rewrite::{NAME, rewrite},
    steps,
};
use crate::template_error::reason;

/// The maximum number of steps of one rendering; a chat of a thousand messages takes some ten thousand.
const FUEL: u64 = 20_000_000;

/// The maximum length of a time format, in bytes.
const MAX_TIME_FORMAT_BYTES: usize = 1000;

/// The variable that holds the current time for `strftime_now`, in seconds since 1970.
const NOW: &str = "__now";

/// One message as a template gets it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Turn<'a> {
    /// The role: `system`, `user`, `assistant` or `tool`.
    pub role: &'a str,
    /// The content; null in a message with calls, which templates may distinguish from an empty text.
    pub content: Option<&'a str>,
    /// The author's name. Absent, not null, if there is none: templates check `is defined`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// The calls of an assistant's message: a list as in OpenAI's API, but with arguments that are objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<&'a serde_json::Value>,
    /// The ID of the call whose result a tool message is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<&'a str>,
}

impl<'a> Turn<'a> {
    /// Creates a message with text content only.
    #[must_use]
    pub const fn new(role: &'a str, content: &'a str) -> Self {
        Self { role, content: Some(content), name: None, tool_calls: None, tool_call_id: None }
    }
}

impl Turn<'_> {
    /// Returns the size of the message's texts, in bytes.
    fn bytes(&self) -> usize {
        let named = self.name.map_or(0, str::len) + self.tool_call_id.map_or(0, str::len);
        self.role.len() + self.content.map_or(0, str::len) + named + self.tool_calls.map_or(0, json_bytes)
    }
}

fn json_bytes(value: &serde_json::Value) -> usize {
    value.to_string().len()
}

impl<'a> From<&'a Message> for Turn<'a> {
    fn from(message: &'a Message) -> Self {
        Self {
            role: message.role.as_str(),
            content: message.content.as_deref(),
            name: message.name.as_deref(),
            tool_calls: message.tool_calls.as_ref(),
            tool_call_id: message.tool_call_id.as_deref(),
        }
    }
}

/// The inputs of a rendering other than the messages.
#[derive(Debug, Clone, Copy)]
pub struct RenderSettings<'a> {
    /// JSON schemas of tools, as transformers takes them.
    pub tools: Option<&'a serde_json::Value>,
    /// The current time for the template, in seconds since 1970: the same for a whole job, preview or estimate.
    pub now: i64,
    /// Variables that a request or job sets (`chat_template_kwargs`). A variable with the name of one of the template's
    /// own inputs has no effect; `TemplateKwargs` of the domain refuses those.
    pub variables: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

impl RenderSettings<'_> {
    /// Returns settings without tools and variables, at the time `now`.
    #[must_use]
    pub const fn at(now: i64) -> Self {
        Self { tools: None, now, variables: None }
    }

    /// Returns settings without tools and variables, at the current time.
    #[must_use]
    pub fn today() -> Self {
        Self::at(Utc::now().timestamp())
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The special tokens by name, `bos_token`, `eos_token`, …: variables of the template.
    special: BTreeMap<String, String>,
    sha256: Sha256,
    source: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `special` has the model's special tokens: `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// [`TextError::Template`]: not valid Jinja.
    pub fn new(source: &str, special: BTreeMap<String, String>) -> Result<Self, TextError> {
        let bounded = rewrite(&without_generation_tags(source)).map_err(TextError::Template)?;
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        builtins::add(&mut environment);
        steps::add(&mut environment);
        environment.set_formatter(crate::repr::print);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, bounded).map_err(|e| TextError::Template(reason(&e)))?;
        let sha256 = Sha256::from_digest(sha2::Sha256::digest(source.as_bytes()).into());
        Ok(Self { environment, special, sha256, source: source.to_owned() })
    }

    /// Renders messages.
    ///
    /// # Errors
    /// [`EncodeError::Template`]: the template raised an exception, used an undefined value, or exceeded its limits.
    pub fn render(
        &self,
        turns: &[Turn<'_>],
        add_generation_prompt: bool,
        settings: RenderSettings<'_>,
    ) -> Result<String, EncodeError> {
        let RenderSettings { tools, now, variables } = settings;
        let given = variables.into_iter().flat_map(|variables| variables.values()).chain(tools);
        let input = turns.iter().map(Turn::bytes).sum::<usize>() + given.map(json_bytes).sum::<usize>();
        let variables = variables.map_or_else(|| context! {}, Value::from_serialize);
        let allowance = Allowance::of(input, turns.len());
        let context = context! {
            messages => turns, tools => tools, documents => (), add_generation_prompt => add_generation_prompt,
            __now => now, ..context! { ..Value::from_serialize(&self.special), ..variables }
        };
        let _metered = Metered::start(allowance);
        let mut printed = Printed::new(allowance.output);
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut printed).map(drop));
        if printed.is_full() {
            return Err(EncodeError::Template(prints_too_much(allowance, input)));
        }
        rendered.map_err(|e| EncodeError::Template(reason(&e)))?;
        String::from_utf8(printed.into_bytes()).map_err(|e| EncodeError::Template(e.to_string()))
    }

    /// Returns the SHA-256 of the template's text, in hex. An adapter stores it.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Returns the template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Formats the time of the job or request, in UTC, since nodes may be in several time zones.
fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, Error> {
    let refused = |why: &str| {
        let shown: String = format.chars().take(40).collect();
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: '{shown}' {why}"))
    };
    if format.len() > MAX_TIME_FORMAT_BYTES {
        return Err(refused("… is too long"));
    }
    let seconds = state.lookup(NOW).and_then(|now| now.as_i64());
    let now = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).ok_or_else(|| refused("has no now"))?;
    let mut text = String::new();
    // `to_string` would panic on a format that chrono does not know.
    write!(text, "{}", now.format(format)).map_err(|_| refused("is not a format"))?;
    Ok(text)
}

/// Replaces `{% generation %}` by a plain block: it only marks the assistant's part for transformers.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        let Some((inside, after)) = tag.split_once("%}") else {
            rest = &rest[before.len()..];
            break;
        };
        let word = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let kept = match word {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&kept);
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, turns: &[Turn<'_>]) -> Result<String, EncodeError> {
        ChatTemplate::new(source, BTreeMap::new()).unwrap().render(turns, true, RenderSettings::at(DAY))
    }

    const DAY: i64 = 1_732_838_400;
    const HI: Turn<'static> = Turn::new("user", "Hi");

    #[test]
    fn generation_tags_are_plain_blocks() {
        let source = "{%- for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}";
        assert_eq!(render(source, &[HI]).unwrap(), "Hi");
    }

    #[test]
    fn variables_of_the_caller_reach_the_template_and_replace_none_of_its_own() {
        let source = "{{ enable_thinking }} {{ messages | length }} {{ bos_token }} {{ add_generation_prompt }}";
        let template = ChatTemplate::new(source, [("bos_token".to_owned(), "<s>".to_owned())].into()).unwrap();
        let variables = serde_json::json!({"enable_thinking": false, "messages": [], "bos_token": "x", "tools": 1,
            "add_generation_prompt": false});
        let rendered = template
            .render(&[HI], true, RenderSettings { variables: variables.as_object(), ..RenderSettings::at(DAY) })
            .unwrap();
        assert_eq!(rendered, "False 1 <s> True");
    }

    #[test]
    fn an_exception_of_the_template_is_handed_on_in_its_own_words() {
        let refused = render("{{ raise_exception('Roles must alternate') }}", &[HI]).unwrap_err();
        assert_eq!(refused, EncodeError::Template("Roles must alternate".into()));
    }

    #[test]
    fn limit_of_fuel_stops_an_endless_template() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, &[HI]), Err(EncodeError::Template(_))));
    }

    #[test]
    fn an_invalid_format_of_time_is_refused() {
        assert!(render("{{ strftime_now('%Q') }}", &[HI]).is_err());
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &[HI]).unwrap(), "29 Nov 2024");
    }

    #[test]
    fn a_broken_template_does_not_compile() {
        let refused = ChatTemplate::new("{% for %}", BTreeMap::new()).unwrap_err().to_string();
        assert!(refused.starts_with("the chat template is not valid: "), "{refused}");
        assert!(ChatTemplate::new("{% if", BTreeMap::new()).is_err());
    }

    #[test]
    fn the_hash_is_of_the_text_as_it_is_on_disk() {
        let template = ChatTemplate::new("abc", BTreeMap::new()).unwrap();
        assert_eq!(template.sha256().to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
