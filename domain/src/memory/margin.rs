//! The margin that a placement adds to a predicted peak: a default, or that of the underestimates of past runs.

use serde::{Deserialize, Serialize};

use super::estimate::MARGIN_PERCENT;
use crate::bytes::Bytes;

/// The number of past runs from which a margin is measured, the newest ones.
pub const MARGIN_RUNS: usize = 100;

/// The number of past runs below which the margin is the default.
const LEAST_RUNS: usize = 20;

/// The bounds of a measured margin, in percent. The lower one is for the allocator's holes, which differ between runs
/// of one job; the upper one keeps a few wrong measurements from excluding every offer.
const BOUNDS: (u64, u64) = (5, 30);

/// The percentile of the residuals that a margin covers.
const PERCENTILE: usize = 99;

/// The source of a margin; the API shows its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum MarginSource {
    /// The default, for a kind of machine with few past runs.
    #[default]
    Default,
    /// The residuals of past runs on this kind of machine.
    Measured,
}

/// The margin that a placement adds to the predicted peak of a run, in percent of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Margin {
    /// The percentage.
    pub percent: u64,
    /// The source.
    pub source: MarginSource,
}

impl Default for Margin {
    fn default() -> Self {
        Self { percent: MARGIN_PERCENT, source: MarginSource::Default }
    }
}

impl Margin {
    /// Returns the margin that covers the 99th percentile of the underestimates of past runs: predicted and measured
    /// peaks, newest first. With few runs it is the default.
    #[must_use]
    pub fn of_runs(peaks: impl IntoIterator<Item = (Bytes, Bytes)>) -> Self {
        let known = peaks.into_iter().filter(|(predicted, measured)| predicted.0 > 0 && measured.0 > 0);
        let mut residuals: Vec<u64> =
            known.take(MARGIN_RUNS).map(|(predicted, measured)| residual(predicted, measured)).collect();
        if residuals.len() < LEAST_RUNS {
            return Self::default();
        }
        residuals.sort_unstable();
        let place = (residuals.len() * PERCENTILE).div_ceil(100);
        Self::measured(residuals[place - 1])
    }

    /// Returns a measured margin within its bounds.
    #[must_use]
    pub fn measured(percent: u64) -> Self {
        Self { percent: percent.clamp(BOUNDS.0, BOUNDS.1), source: MarginSource::Measured }
    }

    /// Converts the memory that a run needs with the default margin
    /// ([`with_margin`](super::estimate::with_margin)) into what it needs with this one.
    #[must_use]
    pub fn apply(self, need: Bytes) -> Bytes {
        scaled(need, self.percent, MARGIN_PERCENT, u128::div_ceil)
    }

    /// Converts the memory of a machine into the largest need with the default margin that it holds: the inverse of
    /// [`Self::apply`].
    #[must_use]
    pub fn room(self, memory: Bytes) -> Bytes {
        scaled(memory, MARGIN_PERCENT, self.percent, |number, divisor| number / divisor)
    }

    /// Returns a need with the default margin that becomes at least `memory` with this one, and at most two bytes more.
    #[must_use]
    pub fn need_of(self, memory: Bytes) -> Bytes {
        scaled(memory, MARGIN_PERCENT, self.percent, u128::div_ceil)
    }
}

/// Returns the underestimate of a run in percent of the prediction, rounded up; 0: it was none.
fn residual(predicted: Bytes, measured: Bytes) -> u64 {
    let above = u128::from(measured.saturating_sub(predicted).0) * 100;
    u64::try_from(above.div_ceil(u128::from(predicted.0.max(1)))).unwrap_or(u64::MAX)
}

/// Returns bytes with the margin `from` replaced by the margin `to`, in percent.
fn scaled(bytes: Bytes, to: u64, from: u64, divide: impl Fn(u128, u128) -> u128) -> Bytes {
    if from == to {
        return bytes;
    }
    let scaled = divide(u128::from(bytes.0) * u128::from(100 + to), u128::from(100 + from));
    Bytes(u64::try_from(scaled).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::with_margin;

    /// Returns runs that were predicted at 1000 bytes, with these measured peaks.
    fn runs(measured: impl IntoIterator<Item = u64>) -> Margin {
        Margin::of_runs(measured.into_iter().map(|measured| (Bytes(1000), Bytes(measured))))
    }

    #[test]
    fn few_runs_have_the_default_margin() {
        let default = Margin { percent: MARGIN_PERCENT, source: MarginSource::Default };
        assert_eq!(runs([]), default);
        assert_eq!(runs([2000; LEAST_RUNS - 1]), default);
        assert_ne!(runs([2000; LEAST_RUNS]), default);
        // A run without a prediction or a measurement does not count.
        let unknown = [(Bytes(0), Bytes(1)), (Bytes(1), Bytes(0))].into_iter().cycle().take(2 * LEAST_RUNS);
        assert_eq!(Margin::of_runs(unknown), default);
    }

    #[test]
    fn the_margin_covers_the_99th_percentile_of_the_newest_runs_within_bounds() {
        let percent = |measured: &[u64]| runs(measured.iter().copied()).percent;
        // Of few runs, it is the largest residual, rounded up.
        let with_one = |one| [vec![900; LEAST_RUNS - 1], vec![one]].concat();
        assert_eq!([1081, 1090, 1091].map(|one| percent(&with_one(one))), [9, 9, 10]);
        // Never less than the lower bound, nor more than the upper one.
        assert_eq!([percent(&[900; 50]), percent(&with_one(1010)), percent(&with_one(9000))], [5, 5, 30]);
        // Of 100 runs, the largest residual is beyond it; two are not.
        let newest = |large: usize| [vec![1200; large], vec![1060; MARGIN_RUNS - large]].concat();
        assert_eq!([percent(&newest(1)), percent(&newest(2))], [6, 20]);
        // Older runs do not count.
        assert_eq!(percent(&[newest(1), vec![1300; 500]].concat()), 6);
    }

    #[test]
    fn a_measured_margin_names_its_source() {
        assert_eq!(runs([1150; 30]), Margin { percent: 15, source: MarginSource::Measured });
        let stored = serde_json::to_value(Margin::measured(15)).unwrap();
        assert_eq!(stored, serde_json::json!({"percent": 15, "source": "measured"}));
        assert_eq!(<&str>::from(MarginSource::Default), "default");
    }

    #[test]
    fn a_margin_replaces_the_default_one() {
        let need = with_margin(Bytes(1_000_000));
        let with = |percent| Margin::measured(percent).apply(need);
        assert_eq!([5, 10, 30].map(with), [1_050_000, 1_100_000, 1_300_000].map(Bytes));
        assert_eq!(Margin::default().apply(Bytes(u64::MAX)), Bytes(u64::MAX));
        assert_eq!(Margin::measured(30).apply(Bytes(u64::MAX)), Bytes(u64::MAX));
    }

    proptest! {
        /// A need fits a machine if and only if it fits its room; with the default margin both are unchanged.
        #[test]
        fn room_is_the_inverse_of_a_need(need in 0_u64..1 << 45, memory in 0_u64..1 << 45, percent in 5_u64..31) {
            let (margin, need, memory) = (Margin::measured(percent), Bytes(need), Bytes(memory));
            prop_assert_eq!(margin.apply(need) <= memory, need <= margin.room(memory));
            prop_assert!(margin.apply(margin.room(memory)) <= memory);
            let least = margin.need_of(memory);
            prop_assert!((memory.0..=memory.0 + 2).contains(&margin.apply(least).0));
            let default = Margin::default();
            prop_assert_eq!((default.apply(need), default.room(need), default.need_of(need)), (need, need, need));
        }
    }
}
