//! Distributions of times: how long requests waited, as counts in buckets that any process can add up.
//!
//! The bounds of the buckets grow by the factor `2^(1/4)`, as those of a Prometheus native histogram with schema 2: a
//! quantile is off by less than 19 %. Source: <https://prometheus.io/docs/specs/native_histograms/#schema>.

use std::time::Duration;

/// The number of buckets.
pub const BUCKETS: usize = 72;

/// The upper bound of the first bucket, in milliseconds. The last bound is 2^(71/4) times as much, 110 s; longer times
/// are counted in the last bucket.
const FIRST_MS: f64 = 0.5;

/// The buckets for each doubling.
const BUCKETS_PER_DOUBLING: f64 = 4.0;

/// A distribution of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies([u64; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Latencies {
    /// Returns the distribution with these counts; a bucket that is missing has none.
    #[must_use]
    pub fn from_counts(counts: impl IntoIterator<Item = u64>) -> Self {
        let mut all = Self::default();
        for (bucket, count) in all.0.iter_mut().zip(counts) {
            *bucket = count;
        }
        all
    }

    /// Returns the counts of the buckets.
    #[must_use]
    pub const fn counts(&self) -> &[u64; BUCKETS] {
        &self.0
    }

    /// Adds a time.
    pub fn record(&mut self, time: Duration) {
        let doublings = (time.as_secs_f64() * 1000.0 / FIRST_MS).max(1.0).log2();
        let bucket = (doublings * BUCKETS_PER_DOUBLING).ceil() as usize;
        self.0[bucket.min(BUCKETS - 1)] += 1;
    }

    /// Adds the times of another distribution.
    pub fn add(&mut self, other: &Self) {
        for (bucket, more) in self.0.iter_mut().zip(other.0) {
            *bucket += more;
        }
    }

    /// Returns the number of times.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the time that a share `q` of the times, from 0 to 1, does not exceed, in milliseconds, interpolated
    /// within its bucket; `None`: there are no times.
    #[must_use]
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        let wanted = q.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        for (bucket, &count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = count as f64;
            if below + count >= wanted {
                let (low, high) = (bound_ms(bucket as f64 - 1.0), bound_ms(bucket as f64));
                return Some(low + (high - low) * ((wanted - below) / count));
            }
            below += count;
        }
        None
    }
}

/// Returns the upper bound of a bucket, in milliseconds.
fn bound_ms(bucket: f64) -> f64 {
    FIRST_MS * (bucket / BUCKETS_PER_DOUBLING).exp2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_times_have_no_quantile() {
        assert_eq!(Latencies::default().quantile_ms(0.95), None);
    }

    #[test]
    fn times_of_two_processes_add_up() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        (0..90).for_each(|_| one.record(Duration::from_millis(10)));
        (0..10).for_each(|_| other.record(Duration::from_millis(1000)));
        one.add(&other);
        assert_eq!(one.count(), 100);
        let (median, high) = (one.quantile_ms(0.5).unwrap(), one.quantile_ms(0.95).unwrap());
        assert!((8.0..=12.0).contains(&median) && (840.0..=1190.0).contains(&high), "{median} {high}");
        assert_eq!(Latencies::from_counts(one.counts().iter().copied()), one);
    }

    #[test]
    fn the_shortest_and_the_longest_time_have_a_bucket() {
        let mut all = Latencies::default();
        for time in [Duration::ZERO, Duration::from_micros(1), Duration::from_hours(10), Duration::MAX] {
            all.record(time);
        }
        assert_eq!((all.counts()[0], all.counts()[BUCKETS - 1]), (2, 2));
    }

    proptest! {
        #[test]
        fn a_quantile_is_off_by_less_than_a_bucket(ms in 1.0..100_000.0f64, count in 1..50u32) {
            let mut all = Latencies::default();
            (0..count).for_each(|_| all.record(Duration::from_secs_f64(ms / 1000.0)));
            for q in [0.05, 0.5, 0.95, 1.0] {
                let found = all.quantile_ms(q).unwrap();
                prop_assert!((found / ms - 1.0).abs() < 0.19, "{found} for {ms}");
            }
        }
    }
}
