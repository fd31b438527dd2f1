//! Early stopping: the best validation so far and the number of validations since the last improvement.

use serde::{Deserialize, Serialize};

use crate::checkpoints::exact::Exact;

/// The best validation, and the number of consecutive validations without an improvement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// The lowest validation loss, and its step.
    pub best: Option<Best>,
    /// The loss of the last improvement. A loss counts as an improvement if it is lower than this by more than the
    /// threshold, so a sequence of small decreases counts once they add up to the threshold.
    reference: Option<Exact>,
    without_better: u64,
}

/// The loss and step of a validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The validation loss.
    pub loss: Exact,
    /// The optimizer step before the validation.
    pub step: u64,
}

impl EarlyStopping {
    /// Records a validation. Returns whether its loss is the lowest so far.
    pub fn see(&mut self, step: u64, loss: f64, threshold: f64) -> bool {
        if self.reference.is_none_or(|reference| loss < reference.0 - threshold) {
            self.reference = Some(Exact(loss));
            self.without_better = 0;
        } else {
            self.without_better += 1;
        }
        let is_best = self.best.is_none_or(|best| loss < best.loss.0);
        if is_best {
            self.best = Some(Best { loss: Exact(loss), step });
        }
        is_best
    }

    /// Returns whether `patience` consecutive validations did not improve. A patience of 0 disables early stopping.
    #[must_use]
    pub const fn is_over(&self, patience: u64) -> bool {
        patience > 0 && self.without_better >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(losses: &[f64], patience: u64, threshold: f64) -> (Option<usize>, u64) {
        let mut early = EarlyStopping::default();
        for (at, loss) in losses.iter().enumerate() {
            early.see(at as u64 + 1, *loss, threshold);
            if early.is_over(patience) {
                return (Some(at + 1), early.best.unwrap().step);
            }
        }
        (None, early.best.unwrap().step)
    }

    #[test]
    fn it_is_over_after_so_many_validations_in_a_row_without_a_better_one() {
        assert_eq!(over(&[3.0, 2.0, 2.5, 2.5, 1.0, 1.0, 1.0], 2, 0.0), (Some(4), 2));
        assert_eq!(over(&[3.0, 2.0, 2.5, 1.0, 1.5, 0.5], 2, 0.0), (None, 6));
    }

    #[test]
    fn without_patience_it_never_is() {
        assert_eq!(over(&[1.0, 2.0, 3.0, 4.0], 0, 0.0), (None, 1));
    }

    #[test]
    fn a_loss_that_is_lower_by_less_than_the_threshold_is_best_but_not_better() {
        assert_eq!(over(&[2.0, 1.95, 1.92], 2, 0.1), (Some(3), 3));
    }

    #[test]
    fn small_steps_down_add_up_to_a_better_one() {
        assert_eq!(over(&[2.0, 1.94, 1.88, 1.82, 1.76], 2, 0.1), (None, 5));
    }

    #[test]
    fn equal_is_not_better_and_the_first_of_equals_is_best() {
        assert_eq!(over(&[1.0, 1.0, 1.0], 2, 0.0), (Some(3), 1));
    }
}
