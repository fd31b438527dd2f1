//! Continued pretraining: the cross-entropy of every token of each document.

use attune_model::batch::LossSum;
use attune_text::rows::TrainRow;

use super::interface::{Metrics, Objective, Sequence};

/// The objective of [`Method::ContinuedPretraining`](attune_domain::spec::Method::ContinuedPretraining).
#[derive(Debug)]
pub(crate) struct Cpt;

impl Objective for Cpt {
    /// Returns the documents that are packed into the row. Their loss masks mark every token but the first.
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
    fn each_packed_document_is_a_sequence() {
        let document = |ids: &[u32]| Example { ids: ids.to_vec(), trained: (0..ids.len()).map(|at| at > 0).collect() };
        let row = TrainRow { line: 1, examples: vec![document(&[1, 5, 2]), document(&[1, 6])] };
        let want = [
            Sequence { ids: &[1, 5, 2], weights: vec![0.0, 1.0, 1.0] },
            Sequence { ids: &[1, 6], weights: vec![0.0, 1.0] },
        ];
        assert_eq!(Cpt.sequences(&row), want);
    }
}
