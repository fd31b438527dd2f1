//! The interface of an objective: the sequences of a row, and the metrics of a loss.

use std::fmt::Debug;

use attune_model::batch::{LossSum, mask_weights};
use attune_text::{encode::Example, rows::TrainRow};

/// A training objective.
pub trait Objective: Debug + Sync {
    /// Returns the sequences of a row, which do not attend to each other. By default these are the row's examples, in
    /// which each token that the loss mask marks has the weight 1.
    fn sequences<'a>(&self, row: &'a TrainRow) -> Vec<Sequence<'a>> {
        let sequence = |example: &'a Example| Sequence { ids: &example.ids, weights: mask_weights(&example.trained) };
        row.examples.iter().map(sequence).collect()
    }

    /// Returns the metrics of a loss, summed over a batch. By default these are the means over the trained tokens.
    fn metrics(&self, loss: LossSum) -> Metrics {
        Metrics { loss: loss.mean(), mean_token_accuracy: loss.accuracy() }
    }
}

/// A sequence with a weight for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence<'a> {
    /// The token IDs.
    pub ids: &'a [u32],
    /// The loss weight of each token, as long as `ids`; 0: the token is not trained.
    pub weights: Vec<f32>,
}

/// The metrics of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// The mean cross-entropy of the trained tokens, in nats: `train_loss` and `valid_loss`.
    pub loss: f64,
    /// The share of trained tokens that the model ranked as the most likely token: `train_mean_token_accuracy` and
    /// `valid_mean_token_accuracy`.
    pub mean_token_accuracy: f64,
}
