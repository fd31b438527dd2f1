//! The layout of a batch's sequences in rows: sequences with a common prefix share the rows of that prefix, forward and
//! backward. This is exact, since a token attends only to the tokens before it.
//!
//! A segment is a run of contiguous rows. It attends to its own rows and to those of the segments before it in its
//! sequences. This file has no tensors.

use std::ops::Range;

/// The minimum length of a shared prefix: below, an additional segment costs more than the tokens saved.
const SHORTEST_SHARED: usize = 16;

/// A run of contiguous rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The segment's rows in the batch.
    pub(crate) rows: Range<usize>,
    /// The rows of the preceding segments, in the order of their positions; empty for the start of a sequence.
    pub(crate) past: Vec<Range<usize>>,
}

impl Segment {
    /// Returns a segment that is a whole sequence.
    pub(crate) fn alone(rows: Range<usize>) -> Self {
        Self { rows, past: Vec::new() }
    }

    /// Returns the position of the segment's first token.
    pub(crate) fn first_position(&self) -> usize {
        self.past.iter().map(ExactSizeIterator::len).sum()
    }

    /// Returns the rows of the preceding segments and of this one, in the order of positions.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Range<usize>> {
        self.past.iter().chain(std::iter::once(&self.rows))
    }
}

/// Sequences laid out as rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    /// The token ID of each row.
    pub(crate) ids: Vec<u32>,
    pub(crate) segments: Vec<Segment>,
    /// The row of each token, for each sequence.
    pub(crate) row_index: Vec<Vec<usize>>,
}

impl Segments {
    /// Lays out each sequence separately, in order.
    pub(crate) fn apart(sequences: &[&[u32]]) -> Self {
        let mut made = Self::default();
        for ids in sequences {
            let rows = made.add_rows(ids);
            made.row_index.push(rows.clone().collect());
            made.segments.push(Segment::alone(rows));
        }
        made
    }

    /// Lays out common prefixes once.
    pub(crate) fn shared(sequences: &[&[u32]]) -> Self {
        let mut made = Self { row_index: vec![Vec::new(); sequences.len()], ..Self::default() };
        made.branch(sequences, (0..sequences.len()).collect(), &[]);
        made
    }

    fn add_rows(&mut self, ids: &[u32]) -> Range<usize> {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        start..self.ids.len()
    }

    /// Lays out the remaining tokens of `members`, which have the rows `past` in common.
    fn branch(&mut self, sequences: &[&[u32]], members: Vec<usize>, past: &[Range<usize>]) {
        let done: usize = past.iter().map(ExactSizeIterator::len).sum();
        for group in group_by_prefix(sequences, members, done) {
            let Some(&first) = group.first() else { continue };
            let length = common(sequences, &group, done);
            if length > 0 {
                let rows = self.add_rows(&sequences[first][done..done + length]);
                for &member in &group {
                    self.row_index[member].extend(rows.clone());
                }
                let past = past.to_vec();
                self.segments.push(Segment { rows: rows.clone(), past: past.clone() });
                if group.len() > 1 {
                    self.branch(sequences, group, &[past, vec![rows]].concat());
                }
            }
        }
    }
}

/// Splits `all` into parts of these lengths, which add up to its length.
pub(crate) fn in_parts<'a, T>(mut all: &'a [T], lengths: &[usize]) -> Vec<&'a [T]> {
    let mut next = |length: &usize| {
        let (part, rest) = all.split_at(*length);
        all = rest;
        part
    };
    lengths.iter().map(&mut next).collect()
}

/// Groups `members` by their next [`SHORTEST_SHARED`] tokens, in the order of their first members. A member without
/// remaining tokens is in no group.
fn group_by_prefix(sequences: &[&[u32]], members: Vec<usize>, done: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for member in members {
        let left = &sequences[member][done..];
        if left.is_empty() {
            continue;
        }
        let joins = |group: &&mut Vec<usize>| {
            let theirs = &sequences[group[0]][done..];
            let shared = left.iter().zip(theirs).take(SHORTEST_SHARED).take_while(|(a, b)| a == b).count();
            shared == SHORTEST_SHARED
        };
        match groups.iter_mut().find(joins) {
            Some(group) => group.push(member),
            None => groups.push(vec![member]),
        }
    }
    groups
}

/// Returns the number of tokens after the first `done` that all of `group` have in common.
fn common(sequences: &[&[u32]], group: &[usize], done: usize) -> usize {
    let first = &sequences[group[0]][done..];
    group.iter().fold(first.len(), |length, &member| {
        first[..length].iter().zip(&sequences[member][done..]).take_while(|(a, b)| a == b).count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(sequences: &[Vec<u32>]) -> Segments {
        Segments::shared(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn a_common_beginning_is_laid_out_once() {
        let beginning: Vec<u32> = (0..20).collect();
        let with = |rest: &[u32]| [&beginning[..], rest].concat();
        let made = cut(&[with(&[50, 51]), vec![7, 8], with(&[60]), with(&[])]);
        assert_eq!(made.ids.len(), 20 + 2 + 1 + 2);
        let beginning = Segment::alone(0..20);
        assert_eq!(made.segments[0], beginning);
        let after = |rows| Segment { rows, past: std::iter::once(0..20).collect() };
        assert_eq!(made.segments[1..3], [after(20..22), after(22..23)]);
        assert_eq!(made.segments[3], Segment::alone(23..25));
        assert_eq!((made.segments[1].first_position(), made.segments.len()), (20, 4));
        assert_eq!(made.row_index[3], (0..20).collect::<Vec<_>>());
    }

    proptest! {
        /// In any layout, each sequence reads back unchanged, each row's past is the tokens before it in every sequence
        /// that contains it, and there are no more rows than tokens.
        #[test]
        fn sequences_read_as_they_were(
            stems in prop::collection::vec(prop::collection::vec(0_u32..3, 0..40), 1..4),
            tails in prop::collection::vec((0_usize..3, 0_usize..40, prop::collection::vec(0_u32..3, 1..30)), 1..9),
        ) {
            let sequences: Vec<Vec<u32>> = tails.iter().map(|(stem, cut, tail)| {
                let stem = &stems[stem % stems.len()];
                [&stem[..(*cut).min(stem.len())], tail].concat()
            }).collect();
            let made = cut(&sequences);
            prop_assert!(made.ids.len() <= sequences.iter().map(Vec::len).sum());
            for (sequence, row_index) in sequences.iter().zip(&made.row_index) {
                let read: Vec<u32> = row_index.iter().map(|&row| made.ids[row]).collect();
                prop_assert_eq!(sequence, &read);
                let last = made.segments.iter().find(|s| s.rows.contains(row_index.last().unwrap())).unwrap();
                let chain: Vec<usize> = last.chain().flat_map(Clone::clone).collect();
                prop_assert!(chain.starts_with(row_index));
            }
        }
    }
}
