//! Durations and times as numbers.

use std::cmp::Ordering;

/// The shortest duration that the planner expects of a run.
const SHORTEST: f64 = 1.0;

/// Returns an expected duration, at least a second; of NaN, a second.
pub(super) fn of(seconds: f64) -> f64 {
    seconds.max(SHORTEST)
}

/// Returns the expected time of the end of a run. A run that is late by some time is expected to be late by twice that
/// time, as Tsafrir, Etsion and Feitelson (2007) correct estimates that have passed.
pub(super) fn end(ends_at: f64, now: f64) -> f64 {
    let late = (now - ends_at).max(0.0);
    ends_at.max(now) + late
}

/// A number with a total order, for heaps and sorting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ordered(pub(super) f64);

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Ordered {}
impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_run_is_expected_to_be_late_by_twice_that_time() {
        assert_eq!([end(130.0, 100.0), end(100.0, 100.0), end(90.0, 100.0)], [130.0, 100.0, 110.0]);
        assert_eq!([of(30.0), of(0.0), of(f64::NAN)], [30.0, 1.0, 1.0]);
    }
}
