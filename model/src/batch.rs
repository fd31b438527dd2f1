//! A packed training batch: concatenated sequences with a weight for each token, and the sum of a loss.
//!
//! The gradient of a batch is `-Σ wₜ ∇log pₜ` over its tokens, where `wₜ` is the weight of token `t` and `pₜ` is the
//! probability that the model gives it.

use std::collections::BTreeMap;

use crate::{
    error::ModelError,
    segments::{Segments, in_parts},
};

/// Concatenated sequences that do not attend to each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackedBatch {
    pub(crate) ids: Vec<u32>,
    pub(crate) lengths: Vec<usize>,
    /// The loss weight of each token; 0: the token is not trained.
    weights: Vec<f32>,
}

/// Returns the weights of a loss mask: 1 for a trained token, 0 for all others.
#[must_use]
pub fn mask_weights(trained: &[bool]) -> Vec<f32> {
    trained.iter().map(|&trained| f32::from(trained)).collect()
}

impl PackedBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sequence. `weights[i]` is the weight of token `i` in the loss; a token of weight 0 is not trained. The
    /// weight of a sequence's first token is ignored, since no token precedes it.
    ///
    /// # Errors
    /// [`ModelError::Input`]: no tokens, or another number of weights.
    pub fn push(&mut self, ids: &[u32], weights: &[f32]) -> Result<(), ModelError> {
        if ids.is_empty() || ids.len() != weights.len() {
            return Err(ModelError::Input(format!("a sequence of {} tokens and {} marks", ids.len(), weights.len())));
        }
        self.ids.extend_from_slice(ids);
        self.lengths.push(ids.len());
        self.weights.push(0.0);
        self.weights.extend_from_slice(&weights[1..]);
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
        self.weights.iter().map(|&weight| u64::from(weight != 0.0)).sum()
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
        let mut sums: BTreeMap<(usize, u32), (u32, f64)> = BTreeMap::new();
        let weights = in_parts(&self.weights, &self.lengths);
        for ((ids, weights), row_index) in sequences.iter().zip(weights).zip(&segments.row_index) {
            for at in (1..ids.len()).filter(|&at| weights[at] != 0.0) {
                let (count, weight) = sums.entry((row_index[at - 1], ids[at])).or_default();
                *count += 1;
                *weight += f64::from(weights[at]);
            }
        }
        let target = |((row, id), (count, weight))| Target { row, id, count, weight };
        (segments, sums.into_iter().map(target).collect())
    }
}

/// A token to be predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    /// The row that predicts the token.
    pub(crate) row: usize,
    /// The token's ID.
    pub(crate) id: u32,
    /// The number of sequences that contain this prediction.
    pub(crate) count: u32,
    /// The sum of the prediction's weights in those sequences.
    pub(crate) weight: f64,
}

/// The sum of a loss over tokens, not yet averaged.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSum {
    /// Sum of the cross-entropies, each times its weight, in nats.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_weights_one_and_zero() {
        assert_eq!(mask_weights(&[false, true, true]), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn the_first_token_and_tokens_of_weight_zero_are_not_trained() {
        let mut batch = PackedBatch::new();
        batch.push(&[5, 6, 7], &[2.0, 0.0, -0.5]).unwrap();
        assert_eq!(batch.trained_tokens(), 1);
        let (_, targets) = batch.laid_out(false);
        assert_eq!(targets, [Target { row: 1, id: 7, count: 1, weight: -0.5 }]);
        assert!(batch.push(&[5, 6], &[1.0]).is_err());
    }

    #[test]
    fn the_weights_of_a_shared_prediction_add_up() {
        let stem: Vec<u32> = (0..20).collect();
        let weights = |last: f32| [vec![0.0; 19], vec![last, 1.0]].concat();
        let mut batch = PackedBatch::new();
        for (end, last) in [(30, 0.5), (31, 2.0), (32, 0.0)] {
            batch.push(&[&stem[..], &[end]].concat(), &weights(last)).unwrap();
        }
        assert_eq!(batch.trained_tokens(), 5);
        let (_, shared) = batch.laid_out(true);
        assert_eq!(shared[0], Target { row: 18, id: 19, count: 2, weight: 2.5 });
        let rest: Vec<_> = shared[1..].iter().map(|target| (target.row, target.id, target.count)).collect();
        assert_eq!(rest, [(19, 30, 1), (19, 31, 1), (19, 32, 1)]);
        assert_eq!(batch.laid_out(false).1.len(), 5);
    }
}
