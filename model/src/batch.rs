//! A packed training batch: concatenated sequences with a loss mask, and the sum of a loss.

use std::collections::BTreeMap;

use crate::{
    error::ModelError,
    segments::{Segments, in_parts},
};

/// Concatenated sequences that do not attend to each other.
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

    /// Adds a sequence. `trained[i]` is true if token `i` has a loss. The first token of a sequence never has one,
    /// since no token precedes it.
    ///
    /// # Errors
    /// [`ModelError::Input`]: no tokens, or a mask of another length.
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

    /// Returns the number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Returns the number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Returns the number of trained tokens. Their sum over the whole effective batch divides the loss.
    #[must_use]
    pub fn trained_tokens(&self) -> u64 {
        self.trained.iter().map(|&trained| u64::from(trained)).sum()
    }

    /// Returns the number of rows that go through the decoder, and the number of predicted tokens that the head
    /// computes.
    #[must_use]
    pub fn work(&self, share_prefixes: bool) -> (usize, usize) {
        let (segments, targets) = self.laid_out(share_prefixes);
        (segments.ids.len(), targets.len())
    }

    /// Lays out the sequences as rows, with common prefixes once if `share_prefixes` is set, and returns the targets of
    /// each row.
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
    /// The row that predicts the token.
    pub(crate) row: usize,
    /// The token's ID.
    pub(crate) id: u32,
    /// The number of sequences that contain this prediction.
    pub(crate) count: u32,
}

/// The sum of a loss over tokens, not yet averaged.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSum {
    /// Sum of the cross-entropies, in nats.
    pub sum: f64,
    /// The number of tokens in the sum.
    pub tokens: u64,
    /// The number of those tokens to which the model gave the highest logit.
    pub correct: u64,
}

impl LossSum {
    /// Returns the mean loss in nats per token; 0 without tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.sum / self.tokens as f64 }
    }

    /// Returns the fraction of tokens to which the model gave the highest logit; 0 without tokens.
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
