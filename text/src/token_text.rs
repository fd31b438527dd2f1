//! The text of each token on its own, so that a user sees which tokens are trained.
//!
//! A token may be only a part of a character. Its text then has those bytes as `\xF0`, and `partial` is set; no byte is
//! lost.

use std::fmt::Write;

use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// The text of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenText {
    /// The token's text. The texts of all tokens, special tokens included, add up to the whole text.
    pub text: String,
    /// Flag for a token with a part of a character: its bytes appear in `text` as `\xF0`.
    pub partial: bool,
}

impl Tokenizer {
    /// Returns the text of each of `ids`.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn token_texts(&self, ids: &[u32]) -> Result<Vec<TokenText>, TextError> {
        let byte_level = self.is_byte_level();
        (0..ids.len()).map(|at| if byte_level { Ok(self.spelled(ids[at])) } else { self.decoded(ids, at) }).collect()
    }

    /// Returns the bytes that a token adds within a text.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>, TextError> {
        let Some(token) = self.token_of(id) else { return Ok(Vec::new()) };
        if self.is_byte_level() {
            return Ok(byte_level(&token));
        }
        if let Some(byte) = self.named_byte(id)? {
            return Ok(vec![byte]);
        }
        // A decoder may strip the space before a first token, so the token is decoded after another copy of itself.
        let (once, twice) = (self.decode_raw(&[id])?, self.decode_raw(&[id, id])?);
        Ok(twice.strip_prefix(once.as_str()).unwrap_or(&once).as_bytes().to_vec())
    }

    /// Returns the bytes of a token at the beginning of a text, where a decoder may strip the space before it.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn first_bytes(&self, id: u32) -> Result<Vec<u8>, TextError> {
        if self.is_byte_level() || self.named_byte(id)?.is_some() {
            return self.token_bytes(id);
        }
        Ok(self.decode_with_special(&[id])?.into_bytes())
    }

    fn spelled(&self, id: u32) -> TokenText {
        escaped(&byte_level(&self.token_of(id).unwrap_or_default()))
    }

    /// Returns the text that the token adds after the previous one: a decoder may treat a first token differently.
    fn decoded(&self, ids: &[u32], at: usize) -> Result<TokenText, TextError> {
        if let Some(byte) = self.named_byte(ids[at])? {
            return Ok(escaped(&[byte]));
        }
        let from = at.saturating_sub(1);
        let before = self.decode_raw(&ids[from..at])?;
        let now = self.decode_raw(&ids[from..=at])?;
        let text = match now.strip_prefix(before.as_str()) {
            Some(new) => new.to_owned(),
            None => self.decode_raw(&ids[at..=at])?,
        };
        Ok(TokenText { text, partial: false })
    }

    /// Returns the byte that a token like `<0xF0>` represents. A decoder decodes a run of them together, and one
    /// invalid byte changes the text of the others, so each is read by its name.
    pub(crate) fn named_byte(&self, id: u32) -> Result<Option<u8>, TextError> {
        let Some(token) = self.token_of(id) else { return Ok(None) };
        let Some(byte) = named_byte(&token) else { return Ok(None) };
        // If the decoder has no byte fallback, it is text like any other.
        Ok((self.decode_raw(&[id])? != token).then_some(byte))
    }
}

fn escaped(bytes: &[u8]) -> TokenText {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02X}"); // writing to a String cannot fail
        }
    }
    TokenText { text, partial: std::str::from_utf8(bytes).is_err() }
}

/// Returns the bytes of a byte-level tokenizer's token. Source: `bytes_to_unicode` in OpenAI's GPT-2 encoder.
pub(crate) fn byte_level(token: &str) -> Vec<u8> {
    let byte = |character: char| {
        let plain = |code: u32| matches!(code, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        match u32::from(character) {
            code if plain(code) => u8::try_from(code).ok(),
            code => (0..=255u8).filter(|byte| !plain(u32::from(*byte))).nth(code.checked_sub(256)? as usize),
        }
    };
    // A token with other characters is an added token, whose text is literal.
    token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Returns the byte that `<0xF0>` names.
fn named_byte(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
