//! Constrained decoding: JSON, JSON of a schema, regular expressions, Lark grammars, choices, and tool calls, enforced
//! while tokens are sampled.
//!
//! llguidance computes the set of allowed next tokens from a grammar and a vocabulary. Grammars are compiled on a
//! thread of their own, under llguidance's own limits of size and work; the engine's thread only requests sets.

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use attune_domain::serve::{Form, Tools};
use attune_process::error_chain::chain;
use attune_text::{error::TextError, model::TextModel};
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::{
    answering::{
        grammar_rules::{Calls, grammar},
        lark,
    },
    error::Failure,
};

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

/// The stack of the thread that compiles a grammar, in bytes. llguidance compiles rules by recursion; the bounds of
/// [`lark`] allow some 4,000 levels of it. Memory is used only as far as the recursion gets.
const GRAMMAR_STACK: usize = 256 << 20;
/// The maximum time to prepare a prompt with a grammar. llguidance's limits end the work on the thread itself.
pub(crate) const GRAMMAR_TIME: Duration = Duration::from_secs(10);

/// The maximum length of the first line of llguidance's errors, in characters. It may quote a definition.
const REASON_CHARS: usize = 300;

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
    /// [`Failure::Request`]: a schema or a grammar cannot be enforced. [`Failure::Prompt`]: tools are given and the
    /// model has no chat template.
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
        let param = param_of(form);
        check(form).map_err(|why| cannot_be_enforced(param, &why))?;
        let Some(grammar) = grammar(form, calls.as_ref()) else { return Ok(None) };
        let factory = self.factory.get_or_init(|| factory(text, self.vocabulary));
        let factory = factory.as_ref().map_err(|why| Failure::Internal(why.clone()))?;
        on_own_stack(|| {
            let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(grammar)));
            if let Some(why) = matcher.get_error() {
                return Err(cannot_be_enforced(param, &why));
            }
            let mut constraint = Constraint { matcher, stop_ids: text.stop_ids().to_vec(), param };
            // A grammar that is too complex for the first token is refused here, and not in the engine.
            constraint.allowed()?;
            Ok(Some(constraint))
        })
    }
}

/// Returns the failure of a request whose grammar took longer than [`GRAMMAR_TIME`].
pub(crate) fn too_slow(form: &Form) -> Failure {
    cannot_be_enforced(param_of(form), &format!("compiling it took longer than {} s", GRAMMAR_TIME.as_secs()))
}

/// Returns the request's field that requires the grammar.
fn param_of(form: &Form) -> &'static str {
    if *form == Form::Free { "tools" } else { "response_format" }
}

fn cannot_be_enforced(param: &'static str, why: &str) -> Failure {
    Failure::Request { param, why: format!("Invalid '{param}': it cannot be enforced: {}", reason(why)) }
}

/// Checks what llguidance does not refuse.
fn check(form: &Form) -> Result<(), String> {
    match form {
        Form::Lark { definition } => lark::check(definition),
        Form::Regex { pattern } if pattern.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1 => {
            Err("the regular expression ends with a backslash".into())
        }
        Form::Regex { .. } | Form::Free | Form::Json | Form::Schema { .. } | Form::Choice { .. } => Ok(()),
    }
}

/// Runs `work` on a thread with a large stack.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("grammar".into()).stack_size(GRAMMAR_STACK);
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(|error| Failure::Internal(format!("no thread to compile a grammar: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(Failure::Internal("compiling a grammar panicked".into())))
    })
}

/// Returns an error's first line, shortened, and the reason in a regular expression's error. The other lines show the
/// definition, and llguidance's internal state.
fn reason(why: &str) -> String {
    let first = why.lines().next().unwrap_or_default().trim();
    let shown: String = first.chars().take(REASON_CHARS).collect();
    let cut = if shown.len() < first.len() { "…" } else { "" };
    match why.lines().find_map(|line| line.trim().strip_prefix("error: ")) {
        Some(reason) => format!("{shown}{cut} {reason}"),
        None => format!("{shown}{cut}"),
    }
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
    /// Clones the constraint in its current state. The clones share the lexer, so its states are bounded for all
    /// answers to a request together.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { matcher: self.matcher.clone(), stop_ids: self.stop_ids.clone(), param: self.param }
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
        let why =
            format!("Invalid '{}': it is too complex to be enforced: {}", self.param, reason(&format!("{error:#}")));
        Failure::Request { param: self.param, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_error_is_short_and_names_what_is_wrong() {
        let regex = "at 1(8): invalid regex \"(a\": regex parse error:\n    (a\n    ^\nerror: unclosed group";
        assert_eq!(reason(regex), "at 1(8): invalid regex \"(a\": regex parse error: unclosed group");
        assert_eq!(reason("at 2(1): duplicate rule\n   1 | start"), "at 2(1): duplicate rule");
        assert_eq!(reason(&"x".repeat(1000)).chars().count(), REASON_CHARS + 1);
    }
}
