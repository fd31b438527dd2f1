//! The interface of an objective: the sequences of a row, and the metrics of a loss.

use std::{collections::BTreeMap, fmt::Debug};

use attune_domain::run::metric::MetricName;
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

    /// Returns the metrics of a loss, summed over rows of `split`. By default these are the means over the trained
    /// tokens.
    fn metrics(&self, loss: LossSum, split: Split) -> LossMetrics {
        let accuracy = match split {
            Split::Training => MetricName::TrainMeanTokenAccuracy,
            Split::Validation => MetricName::ValidMeanTokenAccuracy,
        };
        LossMetrics { loss: loss.mean(), named: BTreeMap::from([(accuracy, loss.accuracy())]) }
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

/// The file that rows are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The training file.
    Training,
    /// The validation file.
    Validation,
}

/// The metrics of a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct LossMetrics {
    /// The mean cross-entropy of the trained tokens, in nats: `train_loss` and `valid_loss`.
    pub loss: f64,
    /// The other metrics.
    pub named: BTreeMap<MetricName, f64>,
}
