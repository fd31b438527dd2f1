//! Constrained decoding: JSON, JSON of a schema, and tool calls, enforced while tokens are sampled.
//!
//! If a call and an answer of a schema both start with a brace, the call is expressed as a schema too: the lexer is
//! greedy, so a call whose head were one literal would exclude an answer that starts alike.
//!
//! llguidance computes the set of allowed next tokens from a grammar and a vocabulary. Grammars are compiled on the
//! caller's task, under llguidance's own limits of size and work; the engine's thread only requests sets.

use std::sync::{Arc, OnceLock};

use attune_domain::serve::{Form, ToolChoice, Tools};
use attune_process::error_chain::chain;
use attune_text::{
    error::{EncodeError, TextError},
    model::TextModel,
    tools::ToolFormat,
};
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::error::Failure;

/// The maximum lexer work, in llguidance's fuel, to compile a grammar; some 20 ms.
const GRAMMAR_FUEL: u64 = 1_000_000;
/// The maximum size of a grammar, in symbols.
const GRAMMAR_SYMBOLS: usize = 100_000;
/// The maximum number of lexer states of an answer; each takes one or two kB.
const LEXER_STATES: usize = 20_000;
/// The maximum lexer work, in llguidance's fuel, per token; some 14 ms.
const DRAW_FUEL: u64 = 200_000;
/// The maximum number of Earley items per token; some 3 ms.
const DRAW_ITEMS: usize = 50_000;
/// The maximum number of Earley items at one position of an answer: an object of 900 properties has some 3,600.
const ROW_ITEMS: usize = 20_000;

/// The whitespace between JSON tokens: at most one space, so that no model fills its answer with it.
const WHITE_SPACE: &str = " ";

/// The factory of constraints for one vocabulary. The vocabulary is prepared at the first use: most requests have no
/// constraint.
pub struct Grammars {
    vocabulary: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// An answer's state in its grammar.
pub struct Constraint {
    matcher: Matcher,
    stop_ids: Vec<u32>,
    /// The request's field that requires the grammar.
    param: &'static str,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Creates the factory for a model with this number of logits.
    #[must_use]
    pub const fn new(vocabulary: usize) -> Self {
        Self { vocabulary, factory: OnceLock::new() }
    }

    /// Returns the constraint of a request, or `None` if its answer is unconstrained.
    ///
    /// # Errors
    /// [`Failure::Request`]: a schema cannot be enforced. [`Failure::Prompt`]: tools are given and the model has no
    /// chat template.
    /// tools.
    pub fn constraint(
        &self,
        text: &TextModel,
        form: &Form,
        tools: Option<&Tools>,
    ) -> Result<Option<Constraint>, Failure> {
        let calls = match tools {
            Some(tools) => Calls::of(text, tools, *form != Form::Free)?,
            None => None,
        };
        let Some(grammar) = grammar(form, calls.as_ref()) else { return Ok(None) };
        let param = if *form == Form::Free { "tools" } else { "response_format" };
        let factory = self.factory.get_or_init(|| factory(text, self.vocabulary));
        let factory = factory.as_ref().map_err(|why| Failure::Internal(why.clone()))?;
        let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(grammar)));
        if let Some(why) = matcher.get_error() {
            let why = format!("Invalid '{param}': it cannot be enforced: {}", first_line(&why));
            return Err(Failure::Request { param, why });
        }
        let mut constraint = Constraint { matcher, stop_ids: text.stop_ids().to_vec(), param };
        // A grammar that is too complex for the first token is refused here, and not in the engine.
        constraint.allowed()?;
        Ok(Some(constraint))
    }
}

/// Returns an error's first line: llguidance appends its internal state, for its developers.
fn first_line(why: &str) -> &str {
    why.lines().next().unwrap_or_default().trim()
}

fn factory(text: &TextModel, vocabulary: usize) -> Result<ParserFactory, String> {
    let env = vocabulary_of(text, vocabulary).map_err(|error| chain(&error))?;
    let mut factory = ParserFactory::new_simple(&env).map_err(|error| format!("{error:#}"))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    limits.initial_lexer_fuel = GRAMMAR_FUEL;
    limits.max_grammar_size = GRAMMAR_SYMBOLS;
    limits.max_lexer_states = LEXER_STATES;
    limits.step_lexer_fuel = DRAW_FUEL;
    limits.step_max_items = DRAW_ITEMS;
    limits.max_items_in_row = ROW_ITEMS;
    Ok(factory)
}

/// Returns the tokens' bytes. Special tokens and stop tokens are marked, so that no text can match them.
fn vocabulary_of(text: &TextModel, vocabulary: usize) -> Result<TokEnv, TextError> {
    let tokenizer = text.tokenizer();
    let mut words = Vec::with_capacity(vocabulary);
    for id in 0..u32::try_from(vocabulary).unwrap_or(u32::MAX) {
        let mut word = tokenizer.token_bytes(id)?;
        if !word.is_empty() && (tokenizer.is_special(id) || text.stop_ids().contains(&id)) {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        words.push(word);
    }
    let end = text.stop_ids().first().copied().unwrap_or(u32::MAX);
    let info = TokRxInfo::new(u32::try_from(words.len()).unwrap_or(u32::MAX), end);
    Ok(Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words))))
}

impl Constraint {
    /// Clones the constraint in its current state.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), stop_ids: self.stop_ids.clone(), param: self.param }
    }

    /// Returns the set of allowed next tokens.
    ///
    /// # Errors
    /// [`Failure::Request`]: the grammar exceeds the limits per token.
    pub fn allowed(&mut self) -> Result<SimpleVob, Failure> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(|error| self.too_complex(&error))?;
        let may_end = self.matcher.is_accepting().unwrap_or(false) || self.matcher.is_stopped();
        let known = allowed.len();
        for &id in self.stop_ids.iter().filter(|id| (**id as usize) < known) {
            allowed.set(id as usize, may_end);
        }
        Ok(allowed)
    }

    /// Advances by a sampled token. Returns whether the answer is complete.
    ///
    /// # Errors
    /// [`Failure::Request`]: the grammar exceeds the limits per token. A token that [`Self::allowed`] returned is
    /// refused for no other reason.
    pub fn take(&mut self, token: u32) -> Result<bool, Failure> {
        self.matcher.consume_token(token).map_err(|error| self.too_complex(&error))?;
        Ok(self.matcher.is_stopped())
    }

    fn too_complex(&self, error: &impl std::fmt::Display) -> Failure {
        let why = format!(
            "Invalid '{}': it is too complex to be enforced: {}",
            self.param,
            first_line(&format!("{error:#}"))
        );
        Failure::Request { param: self.param, why }
    }
}

/// The allowed tool calls, as grammar rules.
struct Calls {
    /// `true` if the answer must be a call.
    required: bool,
    /// The rules `calls`, and `free`: text, or calls after text.
    rules: String,
}

impl Calls {
    /// Returns the rules of the calls, or `None` if calls are forbidden or need no grammar. They need one if a call is
    /// required, a tool is strict, or the rest of the answer is `bound` to a format.
    fn of(text: &TextModel, tools: &Tools, bound: bool) -> Result<Option<Self>, Failure> {
        let format = format_of(text)?;
        let required = matches!(tools.choice, ToolChoice::Required | ToolChoice::Named { .. });
        let strict = tools.definitions.iter().any(|tool| tool.strict);
        if tools.choice == ToolChoice::None || !(required || strict || bound) {
            return Ok(None);
        }
        let opening = text.tokenizer().id_of(format.opening()).filter(|id| text.tokenizer().is_special(*id));
        Ok(Some(Self { required, rules: call_rules(format, opening, tools) }))
    }
}

/// Returns the model's format of tool calls.
///
/// # Errors
/// [`Failure::Prompt`]: the model has no chat template.
pub(crate) fn format_of(text: &TextModel) -> Result<ToolFormat, Failure> {
    text.template().map(ToolFormat::of).ok_or(Failure::Prompt(EncodeError::NoTemplate))
}

/// Returns the grammar of an answer, or `None` if it is unconstrained.
fn grammar(form: &Form, calls: Option<&Calls>) -> Option<String> {
    let body = match form {
        Form::Free => None,
        Form::Json => Some(json_rule("body", &json!({"type": "object"}), true)),
        Form::Schema { schema, strict } => Some(json_rule("body", schema, *strict)),
    };
    let (start, rules) = match (body, calls) {
        (None, None) => return None,
        (Some(body), None) => ("body", body),
        (_, Some(calls)) if calls.required => ("calls", calls.rules.clone()),
        (Some(body), Some(calls)) => ("body | calls", format!("{body}{}", calls.rules)),
        (None, Some(calls)) => ("free", calls.rules.clone()),
    };
    Some(format!("start: {start}\n{rules}"))
}

/// Returns the rule for JSON of a schema. If `strict`, keywords that cannot be enforced are refused, else ignored.
fn json_rule(name: &str, schema: &Value, strict: bool) -> String {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({"allOf": [schema]}) };
    schema["x-guidance"] = json!({"whitespace_pattern": WHITE_SPACE, "lenient": !strict});
    format!("{name}: %json {schema}\n")
}

fn call_rules(format: ToolFormat, opening: Option<u32>, tools: &Tools) -> String {
    let wanted = tools.definitions.iter().enumerate().filter(|(_, tool)| tools.choice.admits(&tool.name));
    let (mut names, mut rules) = (Vec::new(), String::new());
    for (number, tool) in wanted {
        let any = json!({"type": "object"});
        let schema = tool.parameters.as_ref().unwrap_or(&any);
        if format.is_bare() {
            let call = call_schema(&tool.name, format.arguments_key(), schema);
            rules += &json_rule(&format!("call_{number}"), &call, tool.strict);
        } else {
            let head = format!("{{\"name\": {}, \"{}\": ", Value::from(tool.name.as_str()), format.arguments_key());
            rules += &format!("call_{number}: {} arguments_{number} \"}}\"\n", quoted(&head));
            rules += &json_rule(&format!("arguments_{number}"), schema, tool.strict);
        }
        names.push(format!("call_{number}"));
    }
    let open = opening.map_or_else(|| quoted(format.opening()), |id| format!("<[{id}]>"));
    // A tool that is requested by name is called once.
    let several = tools.parallel && !matches!(tools.choice, ToolChoice::Named { .. });
    let more = |rest: &str| if several { rest.to_owned() } else { String::new() };
    let calls = match format {
        ToolFormat::Hermes => {
            let marked = format!("marked: \"\\n\" call \"\\n\" {}\n", quoted(format.closing()));
            let rest = format!("marked{}", more(&format!(" (\"\\n\" {open} marked)*")));
            format!("{}{marked}", behind(format, opening, &open, &rest))
        }
        ToolFormat::Llama | ToolFormat::Generic => "calls: call\nfree: call | /(?s:[^{].*)/\n".to_owned(),
        ToolFormat::Mistral => behind(format, opening, &open, &format!("\"[\" call{} \"]\"", more(" (\", \" call)*"))),
    };
    format!("{calls}call: {}\n{rules}", names.join(" | "))
}

/// Returns the schema of a whole call.
fn call_schema(name: &str, key: &str, arguments: &Value) -> Value {
    let mut arguments = arguments.clone();
    let root = format!("#/properties/{key}");
    move_references(&mut arguments, &root);
    json!({
        "type": "object",
        "properties": {"name": {"const": name}, key: arguments},
        "required": ["name", key],
        "additionalProperties": false,
    })
}

/// Rewrites a schema's references to its own parts for a larger schema, in which it is located at `root`.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" && (target == "#" || target.starts_with("#/")) => {
                        target.replace_range(..1, root);
                    }
                    _ if matches!(name.as_str(), "const" | "enum" | "default" | "examples") => {}
                    _ => move_references(value, root),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, root)),
        _ => {}
    }
}

/// Returns the rules of calls that follow `open`, alone or after text. Lexemes are greedy, so an opening that is plain
/// text ends the lexeme of the preceding text.
fn behind(format: ToolFormat, opening: Option<u32>, open: &str, rest: &str) -> String {
    let calls = format!("calls: {open} {rest}\n");
    if opening.is_some() {
        return format!("{calls}free: TEXT | {open} {rest} | TEXT {open} {rest}\nTEXT: /(?s:.+)/\n");
    }
    let mark = pattern(format.opening());
    format!(
        "{calls}free: TEXT | opened {rest}\nopened[lazy]: /(?s:.*){mark}/\n\
         TEXT: /(?s:.+)/ & ~/(?s:.*){mark}(?s:.*)/\n"
    )
}

/// Quotes a text as a literal of the grammar.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Escapes a text as a regular expression that matches only it.
fn pattern(text: &str) -> String {
    let escape =
        |c: char| if c.is_alphanumeric() || matches!(c, '_' | '<' | '>') { c.to_string() } else { format!("\\{c}") };
    text.chars().map(escape).collect()
}
