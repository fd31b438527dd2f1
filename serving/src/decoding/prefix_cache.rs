//! The prefix cache: the keys and values of earlier prompts, so that a shared system prompt is computed only once.
//!
//! The reuse is exact: keys and values depend only on the preceding tokens and the adapter, and only whole chunks are
//! shared. Prompts share the blocks of a common prefix, so each is in memory once. Cached prefixes are evicted first
//! when memory is short. Projects share none: the time to the first token, and the count of cached tokens, would show
//! what others prompt. Nor does a project evict those of others while it has more: the project with the most loses its
//! least recently used one.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use attune_domain::serve::AdapterKey;
use attune_model::nn::kv_cache::KvCache;

use crate::decoding::{fair_queue::Scheduled, sequence::CHUNK};

/// The maximum number of cached prompts. A lookup takes time proportional to it.
const MOST: usize = 32;

/// The project that may reuse a prefix, and the model that processed it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    project: Arc<str>,
    adapter: Option<AdapterKey>,
}

impl Owner {
    /// Returns the owner of a request's prefix.
    pub(crate) fn of(request: &impl Scheduled) -> Self {
        Self { project: request.project().clone(), adapter: request.adapter() }
    }
}

/// A processed prefix.
pub(crate) struct Prefix {
    owner: Owner,
    /// The tokens, exactly as many as the cache holds.
    tokens: Vec<u32>,
    pub(crate) cache: KvCache,
}

/// The cached prefixes, the least recently used first.
#[derive(Default)]
pub(crate) struct Prefixes(VecDeque<Prefix>);

/// Returns the number of tokens of `prompt` that may be those of `other`: whole chunks, and never all tokens, since
/// the last token must be fed to get its logits.
pub(crate) fn shared(prompt: &[u32], other: &[u32]) -> usize {
    let same = prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1)) / CHUNK * CHUNK
}

impl Prefixes {
    /// Returns the entry with the longest shared prefix, and its length. Marks the entry as used.
    pub(crate) fn longest(&mut self, owner: &Owner, prompt: &[u32]) -> Option<(&Prefix, usize)> {
        let own = self.0.iter().enumerate().filter(|(_, prefix)| prefix.owner == *owner);
        let lengths = own.map(|(at, prefix)| (shared(prompt, &prefix.tokens), at));
        let (length, at) = lengths.max().filter(|(length, _)| *length > 0)?;
        let used = self.0.remove(at)?;
        self.0.push_back(used);
        self.0.back().map(|prefix| (prefix, length))
    }

    /// Caches the prefix of a prompt, unless an entry already contains it.
    pub(crate) fn keep(&mut self, owner: Owner, prompt: &[u32], cache: &KvCache) {
        let whole = prompt.len().min(cache.len()) / CHUNK * CHUNK;
        let tokens = &prompt[..whole];
        let known = |prefix: &Prefix| prefix.owner == owner && prefix.tokens.starts_with(tokens);
        if whole == 0 || self.0.iter().any(known) {
            return;
        }
        self.0.retain(|prefix| prefix.owner != owner || !tokens.starts_with(&prefix.tokens));
        self.0.push_back(Prefix { owner, tokens: tokens.to_vec(), cache: cache.share_prefix(whole) });
        if self.0.len() > MOST {
            self.evict(|_| 1);
        }
    }

    /// Evicts the least recently used entry of the project whose entries have the most tokens. Returns `false` if the
    /// cache is empty.
    pub(crate) fn forget_one(&mut self) -> bool {
        self.evict(|prefix| prefix.tokens.len())
    }

    fn evict(&mut self, size: impl Fn(&Prefix) -> usize) -> bool {
        let sizes: Vec<_> = self.0.iter().map(|prefix| (&prefix.owner.project, size(prefix))).collect();
        let victim = victim(&sizes);
        victim.and_then(|at| self.0.remove(at)).is_some()
    }
}

/// Returns the index of the first entry of the project whose entries are the largest in sum. An entry is its project
/// and its size.
fn victim(entries: &[(&Arc<str>, usize)]) -> Option<usize> {
    let mut sums = BTreeMap::<&Arc<str>, usize>::new();
    for (project, size) in entries {
        *sums.entry(*project).or_default() += size;
    }
    (0..entries.len()).min_by_key(|at| (Reverse(sums.get(entries[*at].0).copied()), *at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_with_the_most_loses_its_oldest_prefix() {
        let [a, b, c]: [Arc<str>; 3] = ["a", "b", "c"].map(Into::into);
        for (entries, want) in [
            (vec![(&b, 1), (&a, 1), (&a, 1), (&c, 1)], Some(1)),
            (vec![(&b, 1), (&a, 1), (&c, 1)], Some(0)),
            (vec![(&b, 300), (&a, 100), (&a, 100)], Some(0)),
            (vec![(&b, 100), (&a, 100), (&c, 100), (&a, 100)], Some(1)),
            (vec![], None),
        ] {
            assert_eq!(victim(&entries), want, "{entries:?}");
        }
    }

    /// However many prefixes a project adds, another keeps its share of all.
    #[test]
    fn a_flood_of_prefixes_evicts_no_prefix_of_another_project() {
        let [quiet, loud]: [Arc<str>; 2] = ["quiet", "loud"].map(Into::into);
        let mut entries: Vec<_> = (0..MOST / 2).map(|_| (&quiet, 1)).collect();
        for _ in 0..1000 {
            entries.push((&loud, 1));
            if entries.len() > MOST {
                entries.remove(victim(&entries).unwrap());
            }
        }
        assert_eq!(entries.iter().filter(|(project, _)| **project == quiet).count(), MOST / 2);
        assert_eq!(entries.len(), MOST);
    }

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
