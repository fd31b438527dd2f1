//! What is trained on at once: sequences behind one another, with marks at the tokens to learn, and the sum of a loss.

use std::collections::BTreeMap;

use crate::{
    error::ModelError,
    segments::{Segments, in_parts},
};

/// Sequences, none of which sees another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBatch {
    pub(crate) ids: Vec<u32>,
    pub(crate) lengths: Vec<usize>,
    trained: Vec<bool>,
}

impl PackedBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sequence; `trained[i]` says that token `i` is one to be learnt. The first token of a sequence never is,
    /// since nothing comes before it.
    ///
    /// # Errors
    /// [`ModelError::Input`]: no token, or not as many marks as tokens.
    pub fn push(&mut self, ids: &[u32], trained: &[bool]) -> Result<(), ModelError> {
        if ids.is_empty() || ids.len() != trained.len() {
            return Err(ModelError::Input(format!("a sequence of {} tokens and {} marks", ids.len(), trained.len())));
        }
        self.ids.extend_from_slice(ids);
        self.lengths.push(ids.len());
        self.trained.push(false);
        self.trained.extend_from_slice(&trained[1..]);
        Ok(())
    }

    /// Tokens in it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Sequences in it.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that are learnt: what the loss is divided by, added up over the whole effective batch.
    #[must_use]
    pub fn trained_tokens(&self) -> u64 {
        self.trained.iter().map(|&trained| u64::from(trained)).sum()
    }

    /// How many rows go through the decoder, and for how many of them the head is asked.
    #[must_use]
    pub fn work(&self, share_prefixes: bool) -> (usize, usize) {
        let (segments, targets) = self.laid_out(share_prefixes);
        (segments.ids.len(), targets.len())
    }

    /// The sequences as rows, common beginnings once if they are to be shared, and what is to be predicted where.
    pub(crate) fn laid_out(&self, share_prefixes: bool) -> (Segments, Vec<Target>) {
        let sequences = in_parts(&self.ids, &self.lengths);
        let segments = if share_prefixes { Segments::shared(&sequences) } else { Segments::apart(&sequences) };
        let mut counts: BTreeMap<(usize, u32), u32> = BTreeMap::new();
        let marks = in_parts(&self.trained, &self.lengths);
        for ((ids, trained), places) in sequences.iter().zip(marks).zip(&segments.places) {
            for at in (1..ids.len()).filter(|&at| trained[at]) {
                *counts.entry((places[at - 1], ids[at])).or_default() += 1;
            }
        }
        let targets = counts.into_iter().map(|((row, id), count)| Target { row, id, count }).collect();
        (segments, targets)
    }
}

/// A token to be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// From which row.
    pub(crate) row: usize,
    /// Which.
    pub(crate) id: u32,
    /// In how many sequences.
    pub(crate) count: u32,
}

/// A loss before it is divided.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSum {
    /// Sum of the cross-entropies, in nats.
    pub sum: f64,
    /// Over so many tokens.
    pub tokens: u64,
    /// Those of them that the model held for the most likely.
    pub correct: u64,
}

impl LossSum {
    /// Nats per token; 0 without tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.sum / self.tokens as f64 }
    }

    /// Share of tokens that the model held for the most likely; 0 without tokens.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.correct as f64 / self.tokens as f64 }
    }
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.tokens += other.tokens;
        self.correct += other.correct;
    }
}
