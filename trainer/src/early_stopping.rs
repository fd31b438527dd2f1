//! When more training makes a model worse: the best validation so far, and how long ago it is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attune_domain::run::{MessageLevel, RunEvent};
use attune_model::{adapter::LoraAdapter, tensor_file::TensorFile};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{error::TrainerError, exact::Exact, run::Link, setup::Session};

/// The best validation, and how many came since without being better.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// The lowest loss, and the step after which it was.
    pub best: Option<Best>,
    /// What a loss must be lower than by the threshold to count as better: the last one that did. So losses that fall
    /// in small steps are better, too, as soon as the steps add up.
    reference: Option<Exact>,
    without_better: u64,
}

/// A validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its loss.
    pub loss: Exact,
    /// After which step.
    pub step: u64,
}

impl EarlyStopping {
    /// Takes a validation in; `true`: it is the best so far.
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

    /// So many validations in a row were not better; a patience of 0 never ends.
    #[must_use]
    pub const fn is_over(&self, patience: u64) -> bool {
        patience > 0 && self.without_better >= patience
    }
}

/// Where the best adapter's factors wait, by the step that they are of.
pub(crate) fn best_file(scratch: &Path, step: u64) -> PathBuf {
    scratch.join(format!("best-{step}.safetensors"))
}

/// Takes in a validation, and keeps the factors if it is the best one.
pub(crate) fn validated(session: &mut Session, loss: f64, link: &Link) -> Result<(), TrainerError> {
    let (train, step) = (&session.spec.train, session.progress.step);
    if train.early_stopping_patience == 0 {
        return Ok(());
    }
    let before = session.progress.early_stopping.best;
    if !session.progress.early_stopping.see(step, loss, train.early_stopping_threshold) {
        return Ok(());
    }
    session.adapter.save_factors(&best_file(&link.scratch, step))?;
    if let Some(before) = before {
        let path = best_file(&link.scratch, before.step);
        fs::remove_file(&path).map_err(TrainerError::io(&path))?;
    }
    Ok(())
}

/// The end of a training with patience: says why it ended, if it did so early, and makes the best validation's adapter
/// the one that is published.
pub(crate) fn conclude(session: &mut Session, link: &Link) -> Result<(), TrainerError> {
    let (train, progress) = (&session.spec.train, &session.progress);
    let Some(best) = progress.early_stopping.best else { return Ok(()) };
    let (step, patience) = (progress.step, train.early_stopping_patience);
    if progress.early_stopping.is_over(patience) && step < session.total_steps {
        let text = format!(
            "Training stopped early after step {step} of {}: {patience} validations in a row were not better by more \
             than {} than the best, {:.4} after step {}",
            session.total_steps, train.early_stopping_threshold, best.loss.0, best.step
        );
        let data = json!({"step": step, "total_steps": session.total_steps, "patience": patience,
            "best_step": best.step, "best_valid_loss": best.loss.0});
        tracing::info!(step, "{text}");
        link.voice.say(RunEvent::Message { level: MessageLevel::Info, text, data })?;
    }
    if best.step == step {
        return Ok(());
    }
    let file = TensorFile::open(&best_file(&link.scratch, best.step))?;
    session.adapter = LoraAdapter::from_file(session.decoder.architecture(), train.adapter.clone(), &file)?;
    session.adapter_step = Some(best.step);
    let text = format!(
        "The adapter is that of step {}: its validation loss, {:.4}, is the lowest of the run",
        best.step, best.loss.0
    );
    let data = json!({"step": step, "best_step": best.step, "best_valid_loss": best.loss.0});
    link.voice.say(RunEvent::Message { level: MessageLevel::Info, text, data })
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
