//! Supervised fine-tuning: the cross-entropy of the tokens that the loss mask marks.

use super::interface::Objective;

/// The objective of [`Method::Supervised`](attune_domain::spec::Method::Supervised).
#[derive(Debug)]
pub(crate) struct Sft;

impl Objective for Sft {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attune_domain::run::metric::MetricName;
    use attune_model::batch::LossSum;
    use attune_text::{encode::Example, rows::TrainRow};

    use super::*;
    use crate::objective::interface::{LossMetrics, Sequence, Split};

    #[test]
    fn trained_tokens_have_the_weight_one() {
        let examples = vec![
            Example { ids: vec![4, 5, 6], trained: vec![false, false, true] },
            Example { ids: vec![7, 8], trained: vec![false, true] },
        ];
        let row = TrainRow { line: 1, examples };
        let want = [
            Sequence { ids: &[4, 5, 6], weights: vec![0.0, 0.0, 1.0] },
            Sequence { ids: &[7, 8], weights: vec![0.0, 1.0] },
        ];
        assert_eq!(Sft.sequences(&row), want);
    }

    #[test]
    fn the_metrics_are_means_over_the_trained_tokens() {
        let loss = LossSum { sum: 6.0, tokens: 4, correct: 3 };
        let splits = [
            (Split::Training, MetricName::TrainMeanTokenAccuracy),
            (Split::Validation, MetricName::ValidMeanTokenAccuracy),
        ];
        for (split, accuracy) in splits {
            let want = LossMetrics { loss: 1.5, named: BTreeMap::from([(accuracy, 0.75)]) };
            assert_eq!(Sft.metrics(loss, split), want);
        }
    }
}
