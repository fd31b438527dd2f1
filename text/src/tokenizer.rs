//! The tokenizer of a `tokenizer.json`: text to token IDs and back. It adds no special tokens.

use std::{collections::HashSet, sync::OnceLock};

use tokenizers::{AddedToken, DecoderWrapper, NormalizedString, Normalizer};

use crate::error::TextError;
use crate::tokenizer_bounds;

/// The minimum of the longest token's length in bytes, which [`Tokenizer::most_bytes`] assumes: a normalizer may
/// shorten a text before it is tokenized.
const SHORTEST_LONGEST: usize = 16;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
    /// Special tokens at which text is always split, whatever is next to them.
    clean: HashSet<u32>,
    /// The texts of special tokens, longest first, so that messages name the longest match.
    special_texts: Vec<String>,
    /// Special tokens that are matched in the normalized text: the normalized form and the text of each.
    normalized: Vec<(String, String)>,
    longest: OnceLock<usize>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Its settings for truncation and padding are turned off: encoding always returns the
    /// whole text.
    ///
    /// # Errors
    /// [`TextError::Invalid`]: not a tokenizer, or one that exceeds the limits.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        tokenizer_bounds::check(json)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| TextError::Invalid { file: "tokenizer.json", reason: e.to_string() })?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| TextError::Invalid { file: "tokenizer.json", reason: e.to_string() })?;
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let clean = added
            .iter()
            .filter(|(_, token)| {
                token.special && !(token.lstrip || token.rstrip || token.single_word || token.normalized)
            })
            .map(|(id, _)| *id)
            .collect();
        let normal = |token: &AddedToken| Some((normalized(&inner, &token.content)?, token.content.clone()));
        let of_text = |token: &&AddedToken| token.special && !token.content.is_empty();
        let normalized = added.values().filter(of_text).filter(|token| token.normalized).filter_map(normal).collect();
        let special_texts = added.values().filter(of_text).map(|token| token.content.clone()).collect();
        let mut tokenizer = Self { inner, special, clean, special_texts, normalized, longest: OnceLock::new() };
        tokenizer.sort_special_texts();
        Ok(tokenizer)
    }

    /// Forbids these tokens in text too, whether the tokenizer marks them as special or not: they begin or end a text.
    pub(crate) fn guard(&mut self, ids: &[u32]) {
        let added = self.inner.get_added_tokens_decoder();
        let texts = ids.iter().filter_map(|id| Some(added.get(id)?.content.clone()));
        self.special_texts.extend(texts.filter(|text| !text.is_empty()));
        self.sort_special_texts();
    }

    fn sort_special_texts(&mut self) {
        self.special_texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.special_texts.dedup();
    }

    /// Encodes `text` to token IDs, without adding any. Text that matches a special token becomes that token; see
    /// [`Self::special_in`].
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TextError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes as [`Self::encode`], and returns where each token ends in the text, in bytes.
    pub(crate) fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TextError> {
        let encoding = self.inner.encode(text, false).map_err(|e| TextError::Tokenizer(e.to_string()))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().iter().map(|(_, end)| *end).collect()))
    }

    /// Encodes as [`Self::encode`], and returns the split points of the text: the text before and after a split is
    /// tokenized independently. The start of the text is the first split.
    pub(crate) fn encode_with_splits(&self, text: &str) -> Result<(Vec<u32>, Vec<SplitPoint>), TextError> {
        let encoding = self.inner.encode(text, false).map_err(|e| TextError::Tokenizer(e.to_string()))?;
        let ids = encoding.get_ids().to_vec();
        let mut splits = vec![SplitPoint { start: 0, end: 0, token: 0 }];
        let offsets = encoding.get_offsets().iter().enumerate();
        splits.extend(offsets.filter(|(i, _)| self.clean.contains(&ids[*i])).map(|(token, (start, end))| SplitPoint {
            start: *start,
            end: *end,
            token,
        }));
        Ok((ids, splits))
    }

    /// Returns the IDs that the tokenizer itself adds before any text: the BOS token, or nothing.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]: as [`Self::encode`].
    pub fn prefix(&self) -> Result<Vec<u32>, TextError> {
        let probe = "a";
        let plain = self.encode(probe)?;
        let full = self.inner.encode_fast(probe, true).map_err(|e| TextError::Tokenizer(e.to_string()))?;
        let full = full.get_ids();
        let start = full.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
        Ok(full[..start].to_vec())
    }

    /// Decodes `ids` with the tokenizer's own decoder, including special tokens. Invalid UTF-8 bytes change the
    /// characters next to them; see [`crate::detokenizer`].
    pub(crate) fn decode_raw(&self, ids: &[u32]) -> Result<String, TextError> {
        self.inner.decode(ids, false).map_err(|e| TextError::Tokenizer(e.to_string()))
    }

    /// Returns whether tokens are written in GPT-2's byte-level alphabet, one letter per byte.
    pub(crate) fn is_byte_level(&self) -> bool {
        match self.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(all)) => {
                all.get_decoders().iter().any(|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_)))
            }
            _ => false,
        }
    }

    /// Returns the ID of a token by its exact text.
    #[must_use]
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the text of a token, as the vocabulary has it.
    #[must_use]
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns whether an ID is a special token.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Returns the IDs of all special tokens.
    #[must_use]
    pub const fn special_ids(&self) -> &HashSet<u32> {
        &self.special
    }

    /// Returns the highest ID that the tokenizer can return.
    #[must_use]
    pub fn highest_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// Returns the maximum length in bytes of a text with this many tokens. A longer text has more tokens and need not
    /// be tokenized.
    #[must_use]
    pub fn most_bytes(&self, tokens: usize) -> usize {
        let longest =
            self.longest.get_or_init(|| self.inner.get_vocab(true).keys().map(String::len).max().unwrap_or(0));
        tokens.saturating_mul(*longest.max(&SHORTEST_LONGEST))
    }

    /// Returns the size of the vocabulary, including added tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns a special token that `text` contains, as is or once normalized, if any.
    #[must_use]
    pub fn special_in(&self, text: &str) -> Option<&str> {
        self.spelled_in(text).or_else(|| {
            // Skipped if no token is matched this way: normalizing costs as much as tokenizing.
            let text = if self.normalized.is_empty() { None } else { normalized(&self.inner, text) }?;
            let found = self.normalized.iter().find(|(normal, _)| !normal.is_empty() && text.contains(normal.as_str()));
            found.map(|(_, token)| token.as_str())
        })
    }

    fn spelled_in(&self, text: &str) -> Option<&str> {
        let mut starts = [false; 256];
        for special in &self.special_texts {
            starts[usize::from(special.as_bytes()[0])] = true;
        }
        let bytes = text.as_bytes();
        (0..bytes.len()).filter(|&at| starts[usize::from(bytes[at])]).find_map(|at| {
            self.special_texts.iter().find(|special| bytes[at..].starts_with(special.as_bytes())).map(String::as_str)
        })
    }
}

/// Returns the normalized text; `None` if there is no normalizer, or it fails.
fn normalized(tokenizer: &tokenizers::Tokenizer, text: &str) -> Option<String> {
    let mut normal = NormalizedString::from(text);
    tokenizer.get_normalizer()?.normalize(&mut normal).ok()?;
    Some(normal.get().to_owned())
}

/// A split point of a text, at a special token: its range in bytes, and the index of its token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SplitPoint {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) token: usize,
}
