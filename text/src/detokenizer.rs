//! Detokenization of token IDs to text, whole or streamed.
//!
//! Invalid UTF-8 bytes become U+FFFD, by the rule of WHATWG's UTF-8 decoder, as soon as they are known to be invalid;
//! the text after them is still returned. The decoders of `tokenizers` work on a whole sequence instead: one invalid
//! byte changes the run of bytes around it, including characters that were already returned.

use crate::{error::TextError, token_text::byte_level, tokenizer::Tokenizer};

/// A streaming detokenizer, which never returns a part of a character.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    byte_level: bool,
    /// Flag to decode special tokens to their text.
    with_special: bool,
    /// The bytes of an incomplete character, three at most.
    bytes: Vec<u8>,
    /// The previous ID, since a decoder may treat a first token differently.
    last: Option<u32>,
}

impl Tokenizer {
    /// Returns the text of `ids` without special tokens.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        Detokenizer::new(self).whole(ids)
    }

    /// Returns the text of `ids` including special tokens.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TextError> {
        Detokenizer { with_special: true, ..Detokenizer::new(self) }.whole(ids)
    }
}

impl<'a> Detokenizer<'a> {
    /// Creates a detokenizer at the beginning of a text.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let byte_level = tokenizer.is_byte_level();
        Self { tokenizer, byte_level, with_special: false, bytes: Vec::new(), last: None }
    }

    /// Creates a detokenizer for the continuation of the tokens `before`. Some decoders strip a space at the beginning
    /// of a text; a continuation keeps it.
    #[must_use]
    pub fn after(tokenizer: &'a Tokenizer, before: &[u32]) -> Self {
        let last = before.iter().rev().copied().find(|id| !tokenizer.is_special(*id));
        Self { last, ..Self::new(tokenizer) }
    }

    /// Adds the next ID, and returns the text that is now complete, if any. Special tokens have no text.
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

    /// Ends the stream: returns the text that was held back, with `U+FFFD` for incomplete characters.
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

    /// Removes and returns the complete characters, with U+FFFD for bytes that cannot become part of one.
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

    /// Removes and returns an incomplete character as U+FFFD.
    fn broken(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
    }

    /// Returns the text that the token adds after the previous one.
    fn added(&self, id: u32) -> Result<String, TextError> {
        let Some(last) = self.last else { return self.tokenizer.decode_raw(&[id]) };
        let (before, both) = (self.tokenizer.decode_raw(&[last])?, self.tokenizer.decode_raw(&[last, id])?);
        match both.strip_prefix(before.as_str()) {
            Some(new) => Ok(new.to_owned()),
            None => self.tokenizer.decode_raw(&[id]),
        }
    }
}
