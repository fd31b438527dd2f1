//! The tokens of a job, from the counts of its files.

use crate::{
    dataset::file_facts::FileFacts,
    spec::{TrainSpec, TrainerSpec},
};

/// The tokens that a job processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobTokens {
    /// Training tokens over all steps.
    pub trained: u64,
    /// Validation tokens over all validations.
    pub validated: u64,
}

impl JobTokens {
    /// Counts the tokens of a whole job from the facts of its files.
    #[must_use]
    pub fn of(spec: &TrainSpec, training: FileFacts, validation: Option<FileFacts>) -> Self {
        let steps = spec.total_steps(training.rows);
        let validated = validation.map_or(0, |facts| facts.tokens.saturating_mul(validations(spec, steps)));
        Self { trained: over_all_steps(spec, training.rows, training.tokens), validated }
    }
}

/// Returns the sum over all steps of a quantity that is `per_epoch` in an epoch over `rows` rows.
#[must_use]
pub fn over_all_steps(spec: &TrainSpec, rows: u64, per_epoch: u64) -> u64 {
    let epochs = u128::from(per_epoch) * u128::from(spec.hyperparameters.n_epochs);
    let (steps, all) = (spec.total_steps(rows), steps_of_all_epochs(spec, rows));
    u64::try_from(epochs * u128::from(steps) / u128::from(all)).unwrap_or(u64::MAX)
}

/// Returns whether the steps are whole epochs, so that [`over_all_steps`] is exact.
#[must_use]
pub fn is_exact(spec: &TrainSpec, rows: u64) -> bool {
    let per_epoch = (steps_of_all_epochs(spec, rows) / u64::from(spec.hyperparameters.n_epochs.max(1))).max(1);
    spec.total_steps(rows).is_multiple_of(per_epoch) && spec.trainer.early_stopping_patience == 0
}

/// Returns the number of steps without `max_steps`, at least 1.
fn steps_of_all_epochs(spec: &TrainSpec, rows: u64) -> u64 {
    let trainer = TrainerSpec { max_steps: None, ..spec.trainer };
    TrainSpec { trainer, ..spec.clone() }.total_steps(rows).max(1)
}

/// Returns the number of passes over the validation file: one every `eval_every_steps` steps, the last at the end.
fn validations(spec: &TrainSpec, steps: u64) -> u64 {
    match spec.trainer.eval_every_steps {
        0 => 1,
        every => steps.div_ceil(every).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        Auto, Requested,
        request::{Hyperparameters, TrainerFields},
    };

    #[test]
    fn whole_epochs_are_exact_and_a_cut_one_is_its_share() {
        let facts = FileFacts { rows: 10, tokens: 1000, trained_tokens: 400, longest_row: 100 };
        let asked = |max_steps| {
            let hyperparameters =
                Hyperparameters { n_epochs: Auto(Some(2)), batch_size: Auto(Some(4)), ..Hyperparameters::default() };
            let trainer = TrainerFields { max_steps, ..TrainerFields::default() };
            let asked = Requested { hyperparameters, trainer, ..Requested::default() };
            let spec = TrainSpec::check(&asked, 10, 512).unwrap();
            let tokens = JobTokens::of(&spec, facts, Some(facts));
            let trained = over_all_steps(&spec, facts.rows, facts.trained_tokens);
            (tokens, trained, is_exact(&spec, facts.rows))
        };
        // Without `eval_every_steps` the validation file is read once, at the end.
        let tokens = |trained| JobTokens { trained, validated: 1000 };
        assert_eq!(asked(None), (tokens(2000), 800, true));
        assert_eq!(asked(Some(3)), (tokens(1000), 400, true));
        assert_eq!(asked(Some(4)), (tokens(1333), 533, false));
    }
}
