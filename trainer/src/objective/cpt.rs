//! Continued pretraining: the cross-entropy of every token of each document.

use super::interface::Objective;

/// The objective of [`Method::ContinuedPretraining`](attune_domain::spec::Method::ContinuedPretraining). The examples
/// of a row are the documents that are packed into it; their loss masks mark every token but the first.
#[derive(Debug)]
pub(crate) struct Cpt;

impl Objective for Cpt {}

#[cfg(test)]
mod tests {
    use attune_text::{encode::Example, rows::TrainRow};

    use super::*;
    use crate::objective::interface::Sequence;

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
