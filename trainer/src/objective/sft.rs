//! Supervised fine-tuning: the cross-entropy of the tokens that the loss mask marks.

use attune_model::batch::LossSum;
use attune_text::rows::TrainRow;

use super::interface::{Metrics, Objective, Sequence};

/// The objective of [`Method::Supervised`](attune_domain::spec::Method::Supervised).
#[derive(Debug)]
pub(crate) struct Sft;

impl Objective for Sft {
    fn sequences<'a>(&self, row: &'a TrainRow) -> Vec<Sequence<'a>> {
        row.examples.iter().map(Sequence::from).collect()
    }

    fn metrics(&self, loss: LossSum) -> Metrics {
        Metrics::per_token(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attune_text::encode::Example;

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
        let metrics = Sft.metrics(LossSum { sum: 6.0, tokens: 4, correct: 3 });
        assert_eq!(metrics, Metrics { loss: 1.5, mean_token_accuracy: 0.75 });
    }
}
