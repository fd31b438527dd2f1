//! Earlier runs, by which the rates of others are known.

use super::{cost::TokenCost, tokens::JobTokens};
use crate::{id::BaseModelId, offer::Offer};

/// The times of a run, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunTimes {
    /// The number of steps of the run.
    pub steps: u64,
    /// The time of those steps.
    pub step_seconds: f64,
    /// The time of its node; `None`: the run has not published an adapter, or was resumed.
    pub node_seconds: Option<f64>,
}

/// The operations of a run, and their time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// The operations of its steps.
    pub operations: f64,
    /// The time of its steps.
    pub step_seconds: f64,
    /// The time of its node outside of the steps and validations, if it is known.
    pub overhead_seconds: Option<f64>,
}

impl Effort {
    /// Computes the operations of a run from those of its job, and the time outside of them.
    #[must_use]
    pub fn of(times: RunTimes, cost: TokenCost, tokens: JobTokens, total_steps: u64) -> Self {
        let RunTimes { steps, step_seconds, node_seconds } = times;
        let share = steps as f64 / total_steps.max(1) as f64;
        let operations = share * cost.trained * tokens.trained as f64;
        let validation = share * cost.validated * tokens.validated as f64;
        let rate = operations / step_seconds.max(f64::MIN_POSITIVE);
        let outside = |node: f64| (node - step_seconds - validation / rate.max(f64::MIN_POSITIVE)).max(0.0);
        Self { operations, step_seconds, overhead_seconds: node_seconds.map(outside) }
    }
}

/// An earlier run.
#[derive(Debug, Clone, PartialEq)]
pub struct PastRun {
    /// The base model.
    pub base: BaseModelId,
    /// The number of weights of the base model.
    pub weights: u64,
    /// The provider's name.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The model name of the processor; `None`: not reported.
    pub processor: Option<String>,
    /// The number of CPU threads.
    pub threads: u32,
    /// The operations and their time.
    pub effort: Effort,
}

impl PastRun {
    /// Returns whether the run was on this offer, or on another slot of it (`cpu/1`, `cpu/2`).
    pub(super) fn is_on(&self, offer: &Offer) -> bool {
        offer.is_same_kind(&self.provider, &self.offer)
    }

    /// Returns the factor between the sizes of the base and of one with so many weights, as a logarithm.
    pub(super) fn distance(&self, weights: u64) -> f64 {
        (self.weights.max(1) as f64 / weights.max(1) as f64).ln().abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effort_is_the_share_of_the_job_that_the_run_trained() {
        let cost = TokenCost { trained: 10.0, validated: 5.0 };
        let tokens = JobTokens { trained: 1000, validated: 400 };
        let effort =
            |steps, node_seconds| Effort::of(RunTimes { steps, step_seconds: 50.0, node_seconds }, cost, tokens, 20);
        // 10,000 operations in 50 s, so the validations took 10 s.
        assert_eq!(
            effort(20, Some(75.0)),
            Effort { operations: 10_000.0, step_seconds: 50.0, overhead_seconds: Some(15.0) }
        );
        assert_eq!(effort(20, Some(55.0)).overhead_seconds, Some(0.0));
        assert_eq!(effort(5, None), Effort { operations: 2_500.0, step_seconds: 50.0, overhead_seconds: None });
    }
}
