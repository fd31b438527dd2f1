//! Ids to text, whole or as they come.
//!
//! Bytes that are no character become U+FFFD, by the rule of WHATWG's UTF-8 decoder, as soon as that is known; what
//! follows them is told. The decoders of `tokenizers` work on a whole sequence instead: one broken byte spoils the run of
//! bytes around it, also the characters that were told already.

use crate::{error::TextError, pieces::byte_level, tokenizer::Tokenizer};

/// Turns ids into text as they come, and never hands out half a character.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    byte_level: bool,
    /// Special tokens have a text.
    with_special: bool,
    /// The bytes of a character that has begun, three at most.
    bytes: Vec<u8>,
    /// The id before, since a decoder may treat a first token differently.
    last: Option<u32>,
}

impl Tokenizer {
    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        Detokenizer::new(self).whole(ids)
    }

    /// The text of `ids`, special tokens and all.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TextError> {
        Detokenizer { with_special: true, ..Detokenizer::new(self) }.whole(ids)
    }
}

impl<'a> Detokenizer<'a> {
    /// A detokenizer that has seen nothing.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let byte_level = tokenizer.is_byte_level();
        Self { tokenizer, byte_level, with_special: false, bytes: Vec::new(), last: None }
    }

    /// A detokenizer of what follows `before` in one text. Some decoders take a space from the beginning of a text; this
    /// is none.
    #[must_use]
    pub fn after(tokenizer: &'a Tokenizer, before: &[u32]) -> Self {
        let last = before.iter().rev().copied().find(|id| !tokenizer.is_special(*id));
        Self { last, ..Self::new(tokenizer) }
    }

    /// Takes the next id; gives the text that is now whole, if any. Special tokens have no text.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TextError> {
        let Some(token) = self.tokenizer.token_of(id) else { return Ok(None) };
        if !self.with_special && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        let text = if self.byte_level {
            self.bytes.extend(byte_level(&token));
            self.characters()
        } else if let Some(byte) = self.tokenizer.named_byte(id)? {
            self.bytes.push(byte);
            self.characters()
        } else {
            self.broken() + &self.added(id)?
        };
        self.last = Some(id);
        Ok((!text.is_empty()).then_some(text))
    }

    /// No id follows: gives what was held back, with `U+FFFD` for bytes that are no character.
    #[must_use]
    pub fn finish(mut self) -> Option<String> {
        let text = self.broken();
        (!text.is_empty()).then_some(text)
    }

    fn whole(mut self, ids: &[u32]) -> Result<String, TextError> {
        let mut text = String::new();
        for id in ids {
            text.extend(self.push(*id)?);
        }
        text.extend(self.finish());
        Ok(text)
    }

    /// Takes the characters that are whole, and what cannot become one any more.
    fn characters(&mut self) -> String {
        let mut text = String::new();
        loop {
            let broken = match std::str::from_utf8(&self.bytes) {
                Ok(_) => None,
                Err(error) => Some((error.valid_up_to(), error.error_len())),
            };
            let valid = broken.map_or(self.bytes.len(), |(valid, _)| valid);
            text.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
            match broken {
                Some((_, Some(length))) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.bytes.drain(..valid + length);
                }
                _ => {
                    self.bytes.drain(..valid);
                    return text;
                }
            }
        }
    }

    /// Takes a character that has begun and does not go on.
    fn broken(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
    }

    /// What the token adds to the text before it.
    fn added(&self, id: u32) -> Result<String, TextError> {
        let Some(last) = self.last else { return self.tokenizer.decode_raw(&[id]) };
        let (before, both) = (self.tokenizer.decode_raw(&[last])?, self.tokenizer.decode_raw(&[last, id])?);
        match both.strip_prefix(before.as_str()) {
            Some(new) => Ok(new.to_owned()),
            None => self.tokenizer.decode_raw(&[id]),
        }
    }
}
