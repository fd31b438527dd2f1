//! Rows, chats and prompts to token ids; for rows also the loss mask: which tokens are trained.
//!
//! The mask of a chat is found by the difference of prefixes: an assistant's tokens are those between the messages
//! before it with the generation prompt, and the messages up to it. That is only right if both are prefixes of the
//! whole at the level of tokens, so that is checked, not assumed.

use attune_domain::dataset::{Message, Row};

use crate::error::EncodeError;
use crate::model::TextModel;
use crate::template::Turn;
use crate::tokenizer::Cut;

/// One training example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// As long as `ids`: whether the loss is taken on predicting this token.
    pub trained: Vec<bool>,
}

/// A whole chat, rendered and tokenised.
struct Whole {
    text: String,
    ids: Vec<u32>,
    cuts: Vec<Cut>,
}

impl Example {
    /// How many tokens are trained. The first token has no prediction and never counts.
    #[must_use]
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|trained| **trained).count()
    }
}

impl TextModel {
    /// A row as ids and mask.
    ///
    /// # Errors
    /// [`EncodeError`]: the row cannot be learnt from as it is; the reason names the message.
    pub fn encode_row(&self, row: &Row) -> Result<Example, EncodeError> {
        let example = match row {
            Row::Chat { messages } => self.chat_example(messages)?,
            Row::Completion { prompt, completion } => self.completion_example(prompt, completion)?,
        };
        self.refuse_doubled_bos(&example.ids)?;
        if example.trained_tokens() == 0 {
            return Err(EncodeError::NothingTrained);
        }
        Ok(example)
    }

    /// A chat's ids, with the generation prompt: what a model answers to.
    ///
    /// # Errors
    /// [`EncodeError`]: no template, the template refuses, or the text spells a special token.
    pub fn encode_chat(&self, turns: &[Turn<'_>]) -> Result<Vec<u32>, EncodeError> {
        self.refuse_special(turns)?;
        let ids = self.ids_of(&self.rendered(turns, true)?)?;
        self.refuse_doubled_bos(&ids)?;
        Ok(ids)
    }

    /// A plain text's ids, as the tokenizer begins one.
    ///
    /// # Errors
    /// [`EncodeError`]: the text spells a special token, or the tokenizer fails.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, EncodeError> {
        self.plain("prompt", prompt)?;
        let mut ids = self.prefix().to_vec();
        ids.extend(self.ids_of(prompt)?);
        Ok(ids)
    }

    fn completion_example(&self, prompt: &str, completion: &str) -> Result<Example, EncodeError> {
        let mut ids = self.encode_prompt(prompt)?;
        self.plain("completion", completion)?;
        let mut trained = vec![false; ids.len()];
        ids.extend(self.ids_of(completion)?);
        ids.push(self.eos().ok_or(EncodeError::NoEos)?);
        trained.resize(ids.len(), true);
        Ok(Example { ids, trained })
    }

    fn chat_example(&self, messages: &[Message]) -> Result<Example, EncodeError> {
        let turns: Vec<Turn<'_>> = messages.iter().map(Turn::from).collect();
        self.refuse_special(&turns)?;
        let text = self.rendered(&turns, false)?;
        let (ids, cuts) =
            self.tokenizer().encode_with_cuts(&text).map_err(|e| EncodeError::Tokenizer(e.to_string()))?;
        let whole = Whole { text, ids, cuts };
        let mut trained = vec![false; whole.ids.len()];
        for (i, _) in messages.iter().enumerate().filter(|(_, message)| message.is_trained()) {
            let refused = |reason| EncodeError::NotAPrefix { message: i, reason };
            let start = self.tokens_of_prefix(&whole, &self.rendered(&turns[..i], true)?)?.ok_or_else(|| {
                refused(
                    "the tokens before this answer change once the answer is there, so what the model would be asked \
                     is not what it would be trained on; an answer that starts with white space does this",
                )
            })?;
            let end = if i + 1 == turns.len() {
                whole.ids.len()
            } else {
                self.tokens_of_prefix(&whole, &self.rendered(&turns[..=i], false)?)?.ok_or_else(|| {
                    refused(
                        "the chat template renders this answer differently once messages follow it; give it weight 0, \
                         or split the chat so that it comes last",
                    )
                })?
            };
            if let Some(part) = trained.get_mut(start..end) {
                part.fill(true);
            }
        }
        Ok(Example { ids: whole.ids, trained })
    }

    /// How many tokens `prefix` has, if they are the first tokens of the whole.
    ///
    /// A text is cut at special tokens before anything else, so the tokens up to the last one that lies in the prefix
    /// are those of the whole, and only the rest is tokenised again. Else a chat of n answers would cost n times its
    /// length.
    fn tokens_of_prefix(&self, whole: &Whole, prefix: &str) -> Result<Option<usize>, EncodeError> {
        let known = if whole.text.starts_with(prefix) { prefix.len() } else { 0 };
        let inside = |cut: &&Cut| cut.end <= known || cut.start == known;
        let (at, count) = whole.cuts.iter().rev().find(inside).map_or((0, 0), |cut| (cut.start, cut.token));
        let rest = self.ids_of(&prefix[at..])?;
        Ok(whole.ids[count..].starts_with(&rest).then_some(count + rest.len()))
    }

    fn rendered(&self, turns: &[Turn<'_>], add_generation_prompt: bool) -> Result<String, EncodeError> {
        self.template().ok_or(EncodeError::NoTemplate)?.render(turns, add_generation_prompt, None)
    }

    fn ids_of(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.tokenizer().encode(text).map_err(|e| EncodeError::Tokenizer(e.to_string()))
    }

    fn refuse_special(&self, turns: &[Turn<'_>]) -> Result<(), EncodeError> {
        for (i, turn) in turns.iter().enumerate() {
            self.plain_in(turn.content, || format!("messages[{i}].content"))?;
            self.plain_in(turn.name.unwrap_or_default(), || format!("messages[{i}].name"))?;
            self.plain_in(turn.role, || format!("messages[{i}].role"))?;
        }
        Ok(())
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
