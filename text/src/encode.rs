//! Encoding of rows, chats and prompts to token IDs; for rows also the loss mask, which marks the trained tokens.
//!
//! The mask of a chat is the difference of two prefixes: an assistant's tokens are those between the preceding messages
//! with the generation prompt, and the messages up to and including it. This is only correct if both are prefixes of
//! the whole at the token level, so that is checked, not assumed. An answer must also contain a token that ends a turn:
//! without it, the model would learn to generate without end.

use std::cell::Cell;
use std::ops::Range;

use attune_domain::dataset::{MAX_MESSAGES, Message, Role, Row};
use serde_json::Value;

use crate::error::EncodeError;
use crate::generic_tools;
use crate::model::TextModel;
use crate::template::{RenderSettings, Turn};
use crate::tokenizer::SplitPoint;
use crate::tools::ToolFormat;

/// The maximum size in bytes of all renderings that locate one row's answers: each answer takes two renderings of the
/// messages before it.
const MAX_RENDERED_BYTES: usize = 128 << 20;

/// A training example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The token IDs.
    pub ids: Vec<u32>,
    /// The loss mask, as long as `ids`: true if the prediction of this token has a loss. Never true for the first
    /// token, which nothing predicts.
    pub trained: Vec<bool>,
}

/// The tokens of a chat or a completion that are trained. Of a plain text, all tokens are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Learnt {
    /// The assistant's messages, except those of weight 0; the completion.
    #[default]
    Answers,
    /// Everything except the assistant's messages of weight 0.
    All,
}

/// A whole chat, rendered and tokenized.
struct Whole<'a> {
    turns: &'a [Turn<'a>],
    settings: RenderSettings<'a>,
    text: String,
    ids: Vec<u32>,
    splits: Vec<SplitPoint>,
    /// The number of bytes that may still be rendered.
    budget: Cell<usize>,
}

impl Example {
    pub(crate) fn new(ids: Vec<u32>, mut trained: Vec<bool>) -> Self {
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Self { ids, trained }
    }

    /// Returns the number of trained tokens.
    #[must_use]
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().filter(|trained| **trained).count()
    }
}

impl TextModel {
    /// Encodes a row to IDs and loss mask. `now` is the current time for its chat template, in seconds since 1970.
    ///
    /// # Errors
    /// [`EncodeError`]: the row cannot be trained on; the reason names the message.
    pub fn encode_row(&self, row: &Row, learnt: Learnt, now: i64) -> Result<Example, EncodeError> {
        let example = match row {
            Row::Chat { messages, tools, .. } => {
                let variables = Some(self.kwargs().as_map());
                self.chat_example(messages, learnt, RenderSettings { tools: tools.as_ref(), now, variables })?
            }
            Row::Completion { prompt, completion } => self.completion_example(prompt, completion, learnt)?,
            Row::Text { text } => self.text_example(text)?,
            Row::Preference { .. } => return Err(EncodeError::Preference),
        };
        self.refuse_doubled_bos(&example.ids)?;
        if example.trained_tokens() == 0 {
            return Err(EncodeError::NothingTrained);
        }
        Ok(example)
    }

    /// Encodes a chat, with the generation prompt, to token IDs.
    ///
    /// # Errors
    /// [`EncodeError`]: no template, the template refuses, or the text contains a special token.
    pub fn encode_chat(&self, turns: &[Turn<'_>], settings: RenderSettings<'_>) -> Result<Vec<u32>, EncodeError> {
        self.encode_rendered(&self.chat_text(turns, settings)?)
    }

    /// Renders a chat, with the generation prompt. Tools, calls and their results are written by the template, or in
    /// the generic format if the template does not support tools.
    ///
    /// # Errors
    /// [`EncodeError`]: no template, the template refuses, or the text contains a special token.
    pub fn chat_text(&self, turns: &[Turn<'_>], settings: RenderSettings<'_>) -> Result<String, EncodeError> {
        if turns.len() > MAX_MESSAGES {
            return Err(EncodeError::TooManyMessages(turns.len()));
        }
        self.refuse_special(turns, settings)?;
        self.rendered(turns, turns.len(), true, settings)
    }

    /// Encodes a text that [`Self::chat_text`] returned.
    ///
    /// # Errors
    /// [`EncodeError`]: the tokenizer fails, or the text begins with two BOS tokens.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let ids = self.ids_of(text)?;
        self.refuse_doubled_bos(&ids)?;
        Ok(ids)
    }

    /// Encodes a plain text, with the tokenizer's prefix.
    ///
    /// # Errors
    /// [`EncodeError`]: the text contains a special token, or the tokenizer fails.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, EncodeError> {
        self.plain("prompt", prompt)?;
        let mut ids = self.prefix().to_vec();
        ids.extend(self.ids_of(prompt)?);
        Ok(ids)
    }

    fn text_example(&self, text: &str) -> Result<Example, EncodeError> {
        self.plain("text", text)?;
        let mut ids = self.prefix().to_vec();
        ids.extend(self.ids_of(text)?);
        ids.push(self.eos().ok_or(EncodeError::NoEos)?);
        let trained = vec![true; ids.len()];
        Ok(Example::new(ids, trained))
    }

    /// Encodes prompt and completion as one text: a tokenizer that adds a space before each text would otherwise add
    /// one between them. A token across the boundary belongs to the completion.
    fn completion_example(&self, prompt: &str, completion: &str, learnt: Learnt) -> Result<Example, EncodeError> {
        self.plain("prompt", prompt)?;
        self.plain("completion", completion)?;
        let whole = [prompt, completion].concat();
        self.plain("prompt and completion together", &whole)?;
        let (text_ids, ends) =
            self.tokenizer().encode_with_ends(&whole).map_err(|e| EncodeError::Tokenizer(e.to_string()))?;
        let alone = self.ids_of(prompt)?;
        let asked = if text_ids.starts_with(&alone) {
            alone.len()
        } else {
            ends.iter().take_while(|end| **end <= prompt.len()).count()
        };
        let mut ids = self.prefix().to_vec();
        let mut trained = vec![learnt == Learnt::All; ids.len() + asked];
        ids.extend(text_ids);
        ids.push(self.eos().ok_or(EncodeError::NoEos)?);
        trained.resize(ids.len(), true);
        Ok(Example::new(ids, trained))
    }

    fn chat_example(
        &self,
        messages: &[Message],
        learnt: Learnt,
        settings: RenderSettings<'_>,
    ) -> Result<Example, EncodeError> {
        let turns: Vec<Turn<'_>> = messages.iter().map(Turn::from).collect();
        self.refuse_special(&turns, settings)?;
        let whole = self.whole_chat(&turns, settings)?;
        self.refuse_unshown(messages, settings.tools, &whole.text)?;
        let all = learnt == Learnt::All;
        let mut trained = vec![all; whole.ids.len()];
        // Either the trained answers are marked, or the untrained ones are unmarked.
        let answers = messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
        for (i, _) in answers.filter(|(_, message)| message.is_trained() != all) {
            let part = self.answer(&whole, i)?;
            if !all {
                self.refuse_endless(i, &whole.ids[part.clone()])?;
            }
            trained[part].fill(!all);
        }
        let example = Example::new(whole.ids, trained);
        if all && example.trained_tokens() > 0 {
            let learnt: Vec<u32> =
                example.ids.iter().zip(&example.trained).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
            self.refuse_endless(turns.len() - 1, &learnt)?;
        }
        Ok(example)
    }

    fn whole_chat<'a>(&self, turns: &'a [Turn<'a>], settings: RenderSettings<'a>) -> Result<Whole<'a>, EncodeError> {
        let text = self.rendered(turns, turns.len(), false, settings)?;
        let (ids, splits) =
            self.tokenizer().encode_with_splits(&text).map_err(|e| EncodeError::Tokenizer(e.to_string()))?;
        Ok(Whole { turns, settings, text, ids, splits, budget: Cell::new(MAX_RENDERED_BYTES) })
    }

    /// Returns the token range of answer `i` in the whole chat: from the generation prompt to the end of its turn.
    fn answer(&self, whole: &Whole<'_>, i: usize) -> Result<Range<usize>, EncodeError> {
        let refused = |reason| EncodeError::NotAPrefix { message: i, reason };
        let start = self.tokens_of_prefix(whole, &self.beginning(whole, i, true)?)?.ok_or_else(|| {
            refused(
                "the tokens before this answer change when the answer follows, so the prompt in serving would differ \
                 from the one in training; this happens, for example, if the answer starts with white space",
            )
        })?;
        let end = if i + 1 == whole.turns.len() {
            whole.ids.len()
        } else {
            self.tokens_of_prefix(whole, &self.beginning(whole, i + 1, false)?)?.ok_or_else(|| {
                refused(
                    "the chat template renders this answer differently once messages follow it; give it weight 0, or \
                     split the chat so that it comes last",
                )
            })?
        };
        Ok(start..end.max(start))
    }

    /// Renders the first `count` messages of a chat. The total size of these renderings is limited: a chat of n answers
    /// has 2n prefixes.
    fn beginning(&self, whole: &Whole<'_>, count: usize, prompt: bool) -> Result<String, EncodeError> {
        let text = self.rendered(whole.turns, count, prompt, whole.settings)?;
        let left = whole.budget.get().checked_sub(text.len()).ok_or(EncodeError::TooMuchWork {
            messages: whole.turns.len(),
            bytes: whole.text.len(),
            most: MAX_RENDERED_BYTES,
        })?;
        whole.budget.set(left);
        Ok(text)
    }

    /// Refuses an answer without a token that ends it. An answer without tokens is accepted: nothing is trained on it.
    fn refuse_endless(&self, message: usize, ids: &[u32]) -> Result<(), EncodeError> {
        if ids.is_empty() || ids.iter().any(|id| self.stop_ids().contains(id)) {
            return Ok(());
        }
        let names = self.stop_ids().iter().map(|id| self.tokenizer().token_of(*id).unwrap_or_else(|| id.to_string()));
        Err(EncodeError::Endless { message, stop: names.collect::<Vec<_>>().join(", ") })
    }

    /// Returns the number of tokens of `prefix`, if they are the first tokens of the whole.
    ///
    /// A tokenizer splits a text at special tokens first, so the tokens up to the last special token within the prefix
    /// are those of the whole, and only the rest is tokenized again. Otherwise a chat of n answers would cost n times
    /// its length.
    fn tokens_of_prefix(&self, whole: &Whole<'_>, prefix: &str) -> Result<Option<usize>, EncodeError> {
        let known = if whole.text.starts_with(prefix) { prefix.len() } else { 0 };
        let inside = |split: &&SplitPoint| split.end <= known || split.start == known;
        let (at, count) = whole.splits.iter().rev().find(inside).map_or((0, 0), |split| (split.start, split.token));
        let rest = self.ids_of(&prefix[at..])?;
        Ok(whole.ids[count..].starts_with(&rest).then_some(count + rest.len()))
    }

    /// Renders the first `count` turns: tools and calls by the template, or in the generic format if it does not
    /// support them.
    fn rendered(
        &self,
        turns: &[Turn<'_>],
        count: usize,
        prompt: bool,
        settings: RenderSettings<'_>,
    ) -> Result<String, EncodeError> {
        let template = self.template().ok_or(EncodeError::NoTemplate)?;
        if ToolFormat::of(template) == ToolFormat::Generic && generic_tools::concerns(turns, settings.tools) {
            let plain = RenderSettings { tools: None, ..settings };
            return generic_tools::rendered(&turns[..count], settings.tools, |turns| {
                template.render(turns, prompt, plain)
            });
        }
        template.render(&turns[..count], prompt, settings)
    }

    /// Refuses tools and calls that the template ignores: the model would not be trained on them.
    fn refuse_unshown(&self, messages: &[Message], tools: Option<&Value>, text: &str) -> Result<(), EncodeError> {
        let Some(template) = self.template().filter(|template| ToolFormat::of(template) != ToolFormat::Generic) else {
            return Ok(());
        };
        let reads = |name| template.source().contains(name);
        let unshown = |place: String, tool: &str| EncodeError::Unshown { place, tool: tool.to_owned() };
        for (i, message) in messages.iter().enumerate() {
            if let Some(name) = message.called().find(|name| !reads("tool_calls") || !text.contains(name)) {
                return Err(unshown(format!("messages[{i}].tool_calls"), name));
            }
        }
        for (i, tool) in tools.and_then(Value::as_array).into_iter().flatten().enumerate() {
            let name = tool["function"]["name"].as_str().unwrap_or_default();
            // Each call contains the name as well.
            let calls = messages.iter().flat_map(Message::called).filter(|called| *called == name).count();
            if !reads("tools") || text.matches(name).count() <= calls {
                return Err(unshown(format!("tools[{i}]"), name));
            }
        }
        Ok(())
    }

    fn ids_of(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.tokenizer().encode(text).map_err(|e| EncodeError::Tokenizer(e.to_string()))
    }

    fn refuse_special(&self, turns: &[Turn<'_>], settings: RenderSettings<'_>) -> Result<(), EncodeError> {
        for (i, turn) in turns.iter().enumerate() {
            self.plain_in(turn.content.unwrap_or_default(), || format!("messages[{i}].content"))?;
            self.plain_in(turn.name.unwrap_or_default(), || format!("messages[{i}].name"))?;
            self.plain_in(turn.role, || format!("messages[{i}].role"))?;
            self.plain_in(turn.tool_call_id.unwrap_or_default(), || format!("messages[{i}].tool_call_id"))?;
            if let Some(calls) = turn.tool_calls {
                self.plain_in(&calls.to_string(), || format!("messages[{i}].tool_calls"))?;
            }
        }
        for (name, value) in settings.variables.into_iter().flatten() {
            self.plain_in(&value.to_string(), || format!("chat_template_kwargs.{name}"))?;
        }
        settings.tools.map_or(Ok(()), |tools| self.plain("tools", &tools.to_string()))
    }

    fn plain(&self, place: &str, text: &str) -> Result<(), EncodeError> {
        self.plain_in(text, || place.to_owned())
    }

    fn plain_in(&self, text: &str, place: impl FnOnce() -> String) -> Result<(), EncodeError> {
        match self.tokenizer().special_in(text) {
            Some(token) => Err(EncodeError::SpecialToken { place: place(), token: token.to_owned() }),
            None => Ok(()),
        }
    }

    fn refuse_doubled_bos(&self, ids: &[u32]) -> Result<(), EncodeError> {
        match (self.bos(), ids) {
            (Some(bos), [first, second, ..]) if *first == bos && *second == bos => {
                Err(EncodeError::DoubledBos(self.tokenizer().token_of(bos).unwrap_or_else(|| bos.to_string())))
            }
            _ => Ok(()),
        }
    }
}
