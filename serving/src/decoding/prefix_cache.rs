//! Beginnings of prompts that were read already, so that a system prompt is computed once and not for every request.
//!
//! Exact: keys and values depend on the tokens before them and on the adapter, nothing else; only whole chunks are taken
//! over. What is kept here is the first to go when memory is wanted.

use std::collections::VecDeque;

use attune_domain::serve::AdapterKey;

use crate::decoding::sequence::{CHUNK, Memory};

/// Prompts that are kept at most; looking through them costs time.
const MOST: usize = 32;

/// What was read, and by which model.
pub(crate) struct Prefix {
    pub(crate) adapter: Option<AdapterKey>,
    /// As many as the cache holds.
    pub(crate) tokens: Vec<u32>,
    pub(crate) memory: Memory,
}

/// The beginnings, the longest unused in front.
#[derive(Default)]
pub(crate) struct Prefixes(VecDeque<Prefix>);

/// How many of the tokens of `prompt` may be taken over from `other`: whole chunks, and not all of it, since the last
/// token must be fed to know what follows.
pub(crate) fn shared(prompt: &[u32], other: &[u32]) -> usize {
    let same = prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1)) / CHUNK * CHUNK
}

impl Prefixes {
    /// The entry that shares most with a prompt, and how much; it counts as used.
    pub(crate) fn longest(&mut self, adapter: Option<AdapterKey>, prompt: &[u32]) -> Option<(&Prefix, usize)> {
        let same_model = self.0.iter().enumerate().filter(|(_, prefix)| prefix.adapter == adapter);
        let lengths = same_model.map(|(at, prefix)| (shared(prompt, &prefix.tokens), at));
        let (length, at) = lengths.max().filter(|(length, _)| *length > 0)?;
        let used = self.0.remove(at)?;
        self.0.push_back(used);
        self.0.back().map(|prefix| (prefix, length))
    }

    /// Keeps the beginning of a prompt, unless one that says more is here.
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

    /// Gives the longest unused up; `false` if there is none.
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
