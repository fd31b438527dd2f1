//! The text of each token on its own, so that a reader sees what is trained and what is not.
//!
//! A token may hold only a part of a character. Its piece then shows those bytes as `\xF0`, and says so; nothing is lost.

use std::fmt::Write;

use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// What bytes that are no character decode to.
const REPLACEMENT: char = '\u{fffd}';

/// So many tokens are held back for a character to become whole; no character has more bytes.
const HELD: usize = 4;

/// The text of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Joined, pieces are the text of all tokens, special tokens and all.
    pub text: String,
    /// It holds a part of a character only: the bytes of that part stand in `text` as `\xF0`.
    pub partial: bool,
}

impl Tokenizer {
    /// The text of each of `ids`.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the decoder failed.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<Piece>, TextError> {
        let mut pieces = Vec::with_capacity(ids.len());
        // The tokens of the piece before are decoded with each, since a decoder may treat a first token differently.
        let (mut from, mut out) = (0, 0);
        for end in 1..=ids.len() {
            if let Some(byte) = self.named_byte(ids[end - 1])? {
                let held = &ids[out..end - 1];
                pieces.extend(self.cut(held, self.decode_with_special(held)?));
                pieces.push(shown(&[byte]));
                (from, out) = (end - 1, end);
                continue;
            }
            let (before, now) =
                (self.decode_with_special(&ids[from..out])?, self.decode_with_special(&ids[from..end])?);
            if now.ends_with(REPLACEMENT) && end < ids.len() && end - out < HELD {
                continue;
            }
            let new = match now.strip_prefix(before.as_str()) {
                Some(new) => new.to_owned(),
                None => self.decode_with_special(&ids[out..end])?,
            };
            pieces.extend(self.cut(&ids[out..end], new));
            (from, out) = (out, end);
        }
        Ok(pieces)
    }

    /// The byte that a token like `<0xF0>` stands for. A run of them is decoded together, and one that is broken spoils
    /// the text of the others; so each is read by its name.
    fn named_byte(&self, id: u32) -> Result<Option<u8>, TextError> {
        let Some(token) = self.token_of(id) else { return Ok(None) };
        let Some(byte) = named_byte(&token) else { return Ok(None) };
        // Where there are no such bytes, it is a text like any other.
        Ok((self.decode_with_special(&[id])? != token).then_some(byte))
    }

    /// The text of some tokens, cut at their borders.
    fn cut(&self, ids: &[u32], text: String) -> Vec<Piece> {
        if ids.is_empty() {
            return Vec::new();
        }
        if ids.len() == 1 && !text.contains(REPLACEMENT) {
            return vec![Piece { text, partial: false }];
        }
        let tokens: Vec<String> = ids.iter().map(|id| self.token_of(*id).unwrap_or_default()).collect();
        for reading in [byte_level, byte_fallback] {
            let bytes: Vec<Vec<u8>> = tokens.iter().map(|token| reading(token)).collect();
            // Bytes that are a text, but another one, were read in the wrong way.
            if std::str::from_utf8(&bytes.concat()).is_ok_and(|read| read != text) {
                continue;
            }
            return bytes.iter().map(|bytes| shown(bytes)).collect();
        }
        // No way to tell the tokens' shares: the last of them has it all.
        let mut pieces = vec![Piece { text: String::new(), partial: true }; ids.len() - 1];
        pieces.push(Piece { text, partial: ids.len() > 1 });
        pieces
    }
}

fn shown(bytes: &[u8]) -> Piece {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02X}"); // a String takes everything
        }
    }
    Piece { text, partial: std::str::from_utf8(bytes).is_err() }
}

/// A token of a byte-level tokenizer. Source: `bytes_to_unicode` in OpenAI's GPT-2 encoder.
fn byte_level(token: &str) -> Vec<u8> {
    let byte = |character: char| {
        let plain = |code: u32| matches!(code, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        match u32::from(character) {
            code if plain(code) => u8::try_from(code).ok(),
            code => (0..=255u8).filter(|byte| !plain(u32::from(*byte))).nth(code.checked_sub(256)? as usize),
        }
    };
    // What is not of the alphabet stands for itself: an added token.
    token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// A token of a sentencepiece tokenizer: `▁` is a space.
fn byte_fallback(token: &str) -> Vec<u8> {
    named_byte(token).map_or_else(|| token.replace('▁', " ").into_bytes(), |byte| vec![byte])
}

/// The byte that `<0xF0>` names.
fn named_byte(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
