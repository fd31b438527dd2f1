//! Estimates of a job's duration: its tokens divided by a throughput, which is measured on similar runs or, without
//! any, computed from a constant.

use crate::{
    architecture::Architecture,
    file_facts::FileFacts,
    spec::{TrainSpec, TrainerSpec},
};

/// Useful operations per second and CPU thread during training.
///
/// Source: a measured run, 165 tokens per second over 134.5 M weights with two threads of a Zen 3, at four operations
/// per weight and token (two forward, two backward: frozen weights get no gradient). The table in docs/bench is of
/// another processor.
const OPERATIONS_PER_THREAD: f64 = 44e9;

/// Operations per weight and token.
const OPERATIONS_PER_WEIGHT: f64 = 4.0;

/// The relative throughput with gradient checkpointing. Source: docs/bench/train.csv.
const CHECKPOINTED: f64 = 0.8;

/// The time of a validation token relative to that of a training token: forward pass only, and no factors.
const VALIDATION_SHARE: f64 = 0.4;

/// Seconds from the launch to the first step.
const START_SECONDS: f64 = 10.0;

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

/// The source of a throughput figure; the API shows its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Source {
    /// Measured on runs of the same base on the same offer.
    Measured,
    /// Computed from a constant that was measured on another machine.
    Assumed,
}

/// A throughput, and its source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// Tokens per second; all tokens of a step count.
    pub tokens_per_second: f64,
    /// The source, which determines the error band.
    pub source: Source,
}

/// A value with an error band.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Band {
    /// The lower bound; smaller values are rare.
    pub low: f64,
    /// The most likely value.
    pub likely: f64,
    /// The upper bound; larger values are rare.
    pub high: f64,
}

impl Band {
    /// Returns the band multiplied by `factor`, with `fixed` added.
    #[must_use]
    pub fn scaled(self, factor: f64, fixed: f64) -> Self {
        let of = |value: f64| value * factor + fixed;
        Self { low: of(self.low), likely: of(self.likely), high: of(self.high) }
    }
}

impl Throughput {
    /// Returns the assumed throughput, for when none was measured.
    #[must_use]
    pub fn assumed(model: &Architecture, threads: u32, checkpointing: bool) -> Self {
        let weights = (model.projection_weights() + model.embedding_weights()).max(1) as f64;
        let share = if checkpointing { CHECKPOINTED } else { 1.0 };
        let operations = OPERATIONS_PER_THREAD * f64::from(threads.max(1)) * share;
        Self { tokens_per_second: operations / (OPERATIONS_PER_WEIGHT * weights), source: Source::Assumed }
    }

    /// Estimates the seconds from the launch to the end. A measured throughput may be off by a quarter, an assumed one
    /// by a factor of three.
    #[must_use]
    pub fn seconds(self, work: JobTokens) -> Band {
        let tokens = work.trained as f64 + VALIDATION_SHARE * work.validated as f64;
        let likely = tokens / self.tokens_per_second.max(f64::MIN_POSITIVE);
        let (low, high) = match self.source {
            Source::Measured => (0.8, 1.25),
            Source::Assumed => (1.0 / 3.0, 3.0),
        };
        Band { low: likely * low, likely, high: likely * high }.scaled(1.0, START_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        Auto, Requested,
        request::{Hyperparameters, TrainerFields},
    };

    const SMOLLM2: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "tie_word_embeddings": true}"#;

    #[test]
    fn the_assumed_throughput_is_that_of_the_bench() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let throughput = Throughput::assumed(&model, 2, false).tokens_per_second;
        assert!((160.0..170.0).contains(&throughput), "{throughput}");
        assert!(Throughput::assumed(&model, 2, true).tokens_per_second < throughput);
    }

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

    #[test]
    fn the_band_holds_the_likely_and_is_narrow_where_it_was_measured() {
        let work = JobTokens { trained: 10_000, validated: 1_000 };
        let width = |source| {
            let band = Throughput { tokens_per_second: 100.0, source }.seconds(work);
            assert!(band.low <= band.likely && band.likely <= band.high, "{band:?}");
            assert!((band.likely - 114.0).abs() < 1e-9, "{band:?}");
            band.high - band.low
        };
        assert!(width(Source::Measured) < width(Source::Assumed));
    }
}
