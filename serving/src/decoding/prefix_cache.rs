//! The prefix cache: the keys and values of earlier prompts, so that a shared system prompt is computed only once.
//!
//! The reuse is exact: keys and values depend only on the preceding tokens and the adapter, and only whole chunks are
//! copied. Cached prefixes are evicted first when memory is short.

use std::collections::VecDeque;

use attune_domain::serve::AdapterKey;

use crate::decoding::sequence::{CHUNK, Memory};

/// The maximum number of cached prompts. A lookup takes time proportional to it.
const MOST: usize = 32;

/// A processed prefix and the model that processed it.
pub(crate) struct Prefix {
    pub(crate) adapter: Option<AdapterKey>,
    /// The tokens, exactly as many as the cache holds.
    pub(crate) tokens: Vec<u32>,
    pub(crate) memory: Memory,
}

/// The cached prefixes, the least recently used first.
#[derive(Default)]
pub(crate) struct Prefixes(VecDeque<Prefix>);

/// Returns the number of tokens of `prompt` that may be copied from `other`: whole chunks, and never all tokens, since
/// the last token must be fed to get its logits.
pub(crate) fn shared(prompt: &[u32], other: &[u32]) -> usize {
    let same = prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1)) / CHUNK * CHUNK
}

impl Prefixes {
    /// Returns the entry with the longest shared prefix, and its length. Marks the entry as used.
    pub(crate) fn longest(&mut self, adapter: Option<AdapterKey>, prompt: &[u32]) -> Option<(&Prefix, usize)> {
        let same_model = self.0.iter().enumerate().filter(|(_, prefix)| prefix.adapter == adapter);
        let lengths = same_model.map(|(at, prefix)| (shared(prompt, &prefix.tokens), at));
        let (length, at) = lengths.max().filter(|(length, _)| *length > 0)?;
        let used = self.0.remove(at)?;
        self.0.push_back(used);
        self.0.back().map(|prefix| (prefix, length))
    }

    /// Caches the prefix of a prompt, unless an entry already contains it.
    pub(crate) fn keep(&mut self, adapter: Option<AdapterKey>, prompt: &[u32], mut memory: Memory) {
        let whole = prompt.len().min(memory.cache.len()) / CHUNK * CHUNK;
        let tokens = &prompt[..whole];
        let known = |prefix: &Prefix| prefix.adapter == adapter && prefix.tokens.starts_with(tokens);
        if whole == 0 || self.0.iter().any(known) {
            return;
        }
        self.0.retain(|prefix| prefix.adapter != adapter || !tokens.starts_with(&prefix.tokens));
        memory.cache.truncate(whole);
        self.0.push_back(Prefix { adapter, tokens: tokens.to_vec(), memory });
        if self.0.len() > MOST {
            self.0.pop_front();
        }
    }

    /// Evicts the least recently used entry. Returns `false` if the cache is empty.
    pub(crate) fn forget_one(&mut self) -> bool {
        self.0.pop_front().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_chunks_are_shared_and_never_the_last_token() {
        let long: Vec<u32> = (0..300).collect();
        let mut other = long.clone();
        other[CHUNK + 5] = 9999;
        for (prompt, other, want) in [
            (&long[..], &long[..], 2 * CHUNK),
            (&long[..2 * CHUNK], &long[..], CHUNK),
            (&long[..2 * CHUNK + 1], &long[..], 2 * CHUNK),
            (&long[..], &other[..], CHUNK),
            (&long[..], &long[..CHUNK - 1], 0),
            (&[][..], &long[..], 0),
        ] {
            assert_eq!(shared(prompt, other), want);
        }
    }
}
