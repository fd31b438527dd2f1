//! The rate of a job on an offer: measured in earlier runs, or derived from the runs that are nearest to it.

use super::{band::Band, cost::TokenCost, past_run::PastRun, tokens::JobTokens};
use crate::{architecture::Architecture, id::BaseModelId, offer::Offer};

/// Operations per second and CPU thread without any earlier run.
///
/// Source: docs/BENCHMARKS.md, 4 × 256 tokens: 543 tokens/s with two threads of a Zen 5 and 165 with two of a Zen 3, at
/// the operations of `cost.rs`; their geometric mean.
const BUILT_IN: f64 = 120e9;

/// The processors of [`BUILT_IN`], in words.
const BUILT_IN_PROCESSORS: &str = "AMD EPYC of the generations Zen 3 and Zen 5";

/// Seconds of a run outside of its steps without any earlier run: the start, checkpoints and the publication.
const OVERHEAD_SECONDS: f64 = 10.0;

/// The shortest measured time, so that runs of no measurable time give a finite rate.
const LEAST_SECONDS: f64 = 1e-3;

/// The number of runs from which a rate is computed, the newest ones.
const RUNS: usize = 5;

/// The source of an expected duration; the API shows its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum DurationSource {
    /// Runs of the same base on the same processor.
    Measured,
    /// Runs of another base on the same processor.
    SimilarBase,
    /// Runs on another processor, or a benchmark there.
    OtherProcessor,
}

impl DurationSource {
    /// Returns the bounds of a duration, relative to the likely one.
    const fn band(self) -> (f64, f64) {
        match self {
            Self::Measured => (0.8, 1.25),
            Self::SimilarBase => (0.5, 2.0),
            Self::OtherProcessor => (1.0 / 3.0, 3.0),
        }
    }
}

/// The rate of a base on an offer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate {
    /// Operations per second.
    pub operations_per_second: f64,
    /// The time outside of steps and validations.
    pub overhead_seconds: f64,
    /// The source of both.
    pub source: DurationSource,
    /// The number of runs in which the rate was measured; 0: a benchmark.
    pub runs: usize,
    /// The model name of the processor of those runs; `None`: not reported.
    pub processor: Option<String>,
}

impl Rate {
    /// Returns the rate of a base on an offer, from earlier runs, newest first: those of the same base on the offer's
    /// processor, then those of the base that is nearest in size there, then those on another processor, per thread.
    ///
    /// The processor of an offer is that of its newest run. Without one, only the runs on the offer count as those on
    /// its processor. The number of threads is a part of it.
    #[must_use]
    pub fn on_offer(past: &[PastRun], base: BaseModelId, model: &Architecture, offer: &Offer) -> Self {
        let weights = base_weights(model);
        let name = past.iter().filter(|run| run.is_on(offer)).find_map(|run| run.processor.as_ref());
        let is_here = |run: &PastRun| {
            run.threads == offer.threads
                && match (name, &run.processor) {
                    (Some(name), Some(other)) => name == other,
                    (None, None) => run.is_on(offer),
                    _ => false,
                }
        };
        let (here, elsewhere): (Vec<&PastRun>, Vec<&PastRun>) = past.iter().partition(|run| is_here(run));
        let same_base = |runs: &[&PastRun]| runs.iter().find(|run| run.base == base).map(|run| run.base);
        let nearest = |runs: &[&PastRun]| {
            let by_distance = |a: &&&PastRun, b: &&&PastRun| a.distance(weights).total_cmp(&b.distance(weights));
            runs.iter().min_by(by_distance).map(|run| run.base)
        };
        if let Some(base) = same_base(&here) {
            return Self::from_runs(&here, base, DurationSource::Measured, offer);
        }
        if let Some(base) = nearest(&here) {
            return Self::from_runs(&here, base, DurationSource::SimilarBase, offer);
        }
        match same_base(&elsewhere).or_else(|| nearest(&elsewhere)) {
            Some(base) => Self::from_runs(&elsewhere, base, DurationSource::OtherProcessor, offer),
            None => Self::built_in(offer),
        }
    }

    /// Returns the rate of the newest runs of a base on one processor.
    fn from_runs(runs: &[&PastRun], base: BaseModelId, source: DurationSource, offer: &Offer) -> Self {
        let processor = runs.iter().find(|run| run.base == base).and_then(|run| run.processor.clone());
        let is_alike = |run: &&&PastRun| run.base == base && run.processor == processor;
        let newest: Vec<&PastRun> = runs.iter().filter(is_alike).take(RUNS).copied().collect();
        let seconds: f64 = newest.iter().map(|run| run.effort.step_seconds).sum();
        let per_thread: f64 = newest.iter().map(|run| run.effort.operations / f64::from(run.threads.max(1))).sum();
        let overheads: Vec<f64> = newest.iter().filter_map(|run| run.effort.overhead_seconds).collect();
        Self {
            operations_per_second: per_thread / seconds.max(LEAST_SECONDS) * f64::from(offer.threads.max(1)),
            overhead_seconds: mean(&overheads).unwrap_or(OVERHEAD_SECONDS),
            source,
            runs: newest.len(),
            processor,
        }
    }

    /// Returns the rate of the benchmarks, for when there was no run at all.
    fn built_in(offer: &Offer) -> Self {
        Self {
            operations_per_second: BUILT_IN * f64::from(offer.threads.max(1)),
            overhead_seconds: OVERHEAD_SECONDS,
            source: DurationSource::OtherProcessor,
            runs: 0,
            processor: None,
        }
    }

    /// Returns the training tokens per second of a job.
    #[must_use]
    pub fn tokens_per_second(&self, cost: TokenCost) -> f64 {
        self.operations_per_second / cost.trained.max(f64::MIN_POSITIVE)
    }

    /// Estimates the seconds from the launch to the end.
    #[must_use]
    pub fn seconds(&self, cost: TokenCost, tokens: JobTokens) -> Band {
        let likely = cost.operations(tokens) / self.operations_per_second.max(f64::MIN_POSITIVE);
        let (low, high) = self.source.band();
        Band { low: likely * low, likely, high: likely * high }.scaled(1.0, self.overhead_seconds)
    }

    /// Describes the source for the user.
    #[must_use]
    pub fn note(&self) -> String {
        let runs = match self.runs {
            1 => "1 run".to_owned(),
            runs => format!("{runs} runs"),
        };
        let here = self.processor.as_deref().unwrap_or("this offer");
        match (self.source, &self.processor) {
            (DurationSource::Measured, _) => format!("Measured in {runs} of this base model on {here}."),
            (DurationSource::SimilarBase, _) => format!(
                "There was no run of this base model on {here} yet: computed from {runs} of another base model there, \
                 by the operations of a token. The duration may be off by a factor of two."
            ),
            (DurationSource::OtherProcessor, _) if self.runs == 0 => format!(
                "There was no run yet: computed from a benchmark of other processors, {BUILT_IN_PROCESSORS}. The \
                 duration may be off by a factor of three."
            ),
            (DurationSource::OtherProcessor, other) => format!(
                "There was no run on this offer's processor with as many threads yet: computed from {runs} on {}. The \
                 duration may be off by a factor of three.",
                other.as_deref().unwrap_or("another processor")
            ),
        }
    }
}

/// Returns the number of weights by which bases are compared.
#[must_use]
pub fn base_weights(model: &Architecture) -> u64 {
    model.projection_weights() + model.embedding_weights()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{bytes::Bytes, throughput::past_run::Effort};

    const TINY: &str = include_str!("../../testdata/tiny.json");

    fn base(number: u128) -> BaseModelId {
        BaseModelId::new(Uuid::from_u128(number))
    }

    fn offer(provider: &str, name: &str, threads: u32) -> Offer {
        Offer::cpu(provider, name, Bytes::mib(1000), threads)
    }

    fn run(number: u128, place: (&str, &str), processor: Option<&str>, rate: f64) -> PastRun {
        PastRun {
            base: base(number),
            weights: 100_000 * number as u64,
            provider: place.0.into(),
            offer: place.1.into(),
            processor: processor.map(Into::into),
            threads: 2,
            effort: Effort { operations: rate * 10.0, step_seconds: 10.0, overhead_seconds: None },
        }
    }

    fn found(past: &[PastRun], offer: &Offer) -> (f64, DurationSource, usize) {
        let model = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let rate = Rate::on_offer(past, base(1), &model, offer);
        (rate.operations_per_second, rate.source, rate.runs)
    }

    #[test]
    fn without_any_run_the_rate_is_a_benchmarks_and_says_so() {
        let model = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let rate = Rate::on_offer(&[], base(1), &model, &offer("local", "a", 4));
        assert_eq!((rate.operations_per_second, rate.source), (4.0 * BUILT_IN, DurationSource::OtherProcessor));
        assert!(rate.note().contains("benchmark of other processors, AMD EPYC"), "{}", rate.note());
    }

    #[test]
    fn a_run_of_the_base_on_the_processor_counts_on_all_of_its_offers() {
        let past = [
            run(1, ("cluster", "cpu/1"), Some("Xeon"), 6.0),
            run(9, ("local", "a"), Some("Xeon"), 3.0),
            run(1, ("local", "a"), Some("EPYC"), 100.0),
            run(1, ("cluster", "cpu/2"), Some("Xeon"), 8.0),
        ];
        for here in [offer("cluster", "cpu/3", 2), offer("local", "a", 2)] {
            assert_eq!(found(&past, &here), (7.0, DurationSource::Measured, 2), "{here:?}");
        }
        // With as many threads only.
        assert_eq!(found(&past, &offer("local", "a", 4)), (14.0, DurationSource::OtherProcessor, 2));
        assert_eq!(found(&past, &offer("cluster", "gpu", 2)), (7.0, DurationSource::OtherProcessor, 2));
    }

    #[test]
    fn another_base_on_the_processor_is_preferred_to_the_base_on_another() {
        let past = [
            run(1, ("far", "b"), Some("EPYC"), 50.0),
            run(9, ("local", "a"), Some("Xeon"), 3.0),
            run(3, ("local", "a"), Some("Xeon"), 4.0),
        ];
        assert_eq!(found(&past, &offer("local", "a", 2)), (4.0, DurationSource::SimilarBase, 1));
        assert_eq!(found(&past[..1], &offer("local", "a", 2)), (50.0, DurationSource::OtherProcessor, 1));
    }

    #[test]
    fn runs_without_a_processor_count_on_their_own_offer() {
        let past = [run(1, ("local", "a"), None, 5.0), run(1, ("far", "a"), None, 7.0)];
        assert_eq!(found(&past, &offer("local", "a", 2)), (5.0, DurationSource::Measured, 1));
        assert_eq!(found(&past[1..], &offer("local", "a", 2)), (7.0, DurationSource::OtherProcessor, 1));
    }

    #[test]
    fn each_source_is_described_with_the_processor_of_the_runs() {
        let model = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let past = [run(1, ("local", "a"), Some("Xeon"), 5.0)];
        let note = |number, name| Rate::on_offer(&past, base(number), &model, &offer("local", name, 2)).note();
        assert_eq!(note(1, "a"), "Measured in 1 run of this base model on Xeon.");
        assert!(note(2, "a").starts_with("There was no run of this base model on Xeon yet: "), "{}", note(2, "a"));
        assert!(note(1, "b").contains("offer's processor with as many threads yet: computed from 1 run on Xeon."));
    }

    #[test]
    fn a_duration_has_the_overhead_of_the_runs_and_a_band_by_its_source() {
        let model = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let run = |overhead_seconds| {
            let run = run(1, ("local", "a"), None, 100.0);
            PastRun { effort: Effort { overhead_seconds, ..run.effort }, ..run }
        };
        let past = [run(Some(4.0)), run(Some(6.0)), run(None)];
        let cost = TokenCost { trained: 10.0, validated: 5.0 };
        let tokens = JobTokens { trained: 10_000, validated: 2_000 };
        let band = |number| Rate::on_offer(&past, base(number), &model, &offer("local", "a", 2)).seconds(cost, tokens);
        let Band { low, likely, high } = band(1);
        assert!((likely - 1105.0).abs() < 1e-6 && low < likely && likely < high, "{low} {likely} {high}");
        assert!(band(2).high - band(2).low > high - low, "another base");
    }
}
