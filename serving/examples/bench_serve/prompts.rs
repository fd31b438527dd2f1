//! The prompts, the random numbers of loads, and the popularity of adapters.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// The smallest token ID of a random prompt; those below it are special tokens and bytes in most vocabularies.
const FIRST_ID: u32 = 1_000;
/// The first token ID above those of random prompts.
const LAST_ID: u32 = 40_000;

/// A source of random numbers.
pub(crate) struct Random(Pcg64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Pcg64::seed_from_u64(seed))
    }

    /// Returns a number from `from` to `to`, both included.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        self.0.random_range(from..=to)
    }

    /// Returns the time to the next arrival of a Poisson process of `rate` arrivals per second: exponentially
    /// distributed, by inversion.
    pub(crate) fn gap(&mut self, rate: f64) -> f64 {
        -(1.0 - self.0.random_range(0.0..1.0_f64)).ln() / rate
    }

    /// Returns a prompt of `count` token IDs that shares no prefix with other prompts.
    pub(crate) fn prompt(&mut self, count: u64) -> Vec<u32> {
        (0..count).map(|_| self.0.random_range(FIRST_ID..LAST_ID)).collect()
    }

    /// Returns an index below the length of `popularity`, which is not empty.
    pub(crate) fn pick(&mut self, popularity: &Popularity) -> usize {
        let total = popularity.0.last().copied().unwrap_or(0.0);
        let at = self.0.random_range(0.0..total);
        popularity.0.partition_point(|sum| *sum <= at)
    }
}

/// The cumulative weights of adapters.
pub(crate) struct Popularity(Vec<f64>);

impl Popularity {
    /// Returns equal weights.
    pub(crate) fn even(count: usize) -> Self {
        Self((1..=count).map(|sum| sum as f64).collect())
    }

    /// Returns weights by Zipf's law with exponent 1: adapter number k, from 1, has the weight 1/k.
    pub(crate) fn skewed(count: usize) -> Self {
        let sums = (1..=count).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self(sums.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_choice_follows_zipf_and_an_even_one_does_not() {
        let mut random = Random::new(3);
        let mut count = |popularity: &Popularity| {
            let mut counts = [0_u32; 4];
            (0..12_000).for_each(|_| counts[random.pick(popularity)] += 1);
            counts
        };
        let even = count(&Popularity::even(4));
        assert!(even.iter().all(|count| (2_800..3_200).contains(count)), "{even:?}");
        // The weights 1, 1/2, 1/3 and 1/4 of 25/12 in total.
        let skewed = count(&Popularity::skewed(4));
        for (got, want) in skewed.iter().zip([5_760_u32, 2_880, 1_920, 1_440]) {
            assert!(got.abs_diff(want) < 250, "{skewed:?}");
        }
    }

    #[test]
    fn gaps_have_the_mean_of_their_rate() {
        let mut random = Random::new(1);
        let sum: f64 = (0..10_000).map(|_| random.gap(4.0)).sum();
        assert!((sum / 10_000.0 - 0.25).abs() < 0.01, "{sum}");
    }

    #[test]
    fn prompts_differ_from_their_first_tokens_on() {
        let mut random = Random::new(0);
        let (one, two) = (random.prompt(64), random.prompt(64));
        assert_eq!((one.len(), two.len()), (64, 64));
        assert_ne!(one[..4], two[..4]);
    }
}
