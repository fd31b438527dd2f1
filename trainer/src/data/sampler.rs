//! The sampler: the rows of each step. They are a pure function of the seed and the step's number, so a run that
//! resumes from a checkpoint trains on exactly the same rows.

use std::ops::Range;

use rand::RngExt;
use rand_pcg::Pcg64;

/// The order of rows over all epochs: every epoch has each row once, in its own permutation.
#[derive(Debug, Clone)]
pub struct Sampler {
    rows: usize,
    batch: usize,
    seed: u64,
    /// The most recently used epoch and its permutation: consecutive steps mostly share it.
    current: Option<(u64, Vec<usize>)>,
}

/// The position of a step in the row order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The range in the epoch's permutation.
    pub part: Range<usize>,
}

impl Sampler {
    /// Creates a sampler of `rows` rows in effective batches of `batch`. The last batch of an epoch may be smaller.
    #[must_use]
    pub fn new(rows: usize, batch: usize, seed: u64) -> Self {
        Self { rows, batch: batch.max(1), seed, current: None }
    }

    /// Returns the position of `step`, counted from 1.
    #[must_use]
    pub fn place(&self, step: u64) -> Place {
        let steps_per_epoch = (self.rows.div_ceil(self.batch) as u64).max(1);
        let done = step.saturating_sub(1);
        let start = (done % steps_per_epoch) as usize * self.batch;
        Place { epoch: done / steps_per_epoch, part: start..(start + self.batch).min(self.rows) }
    }

    /// Returns the number of epochs done after `step`, as a fraction.
    #[must_use]
    pub fn epochs_after(&self, step: u64) -> f64 {
        let place = self.place(step);
        place.epoch as f64 + place.part.end as f64 / self.rows.max(1) as f64
    }

    /// Returns the row indices of `step`.
    pub fn batch(&mut self, step: u64) -> Vec<usize> {
        let place = self.place(step);
        if self.current.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
            self.current = Some((place.epoch, order(self.rows, self.seed, place.epoch)));
        }
        self.current.as_ref().map_or_else(Vec::new, |(_, order)| order[place.part].to_vec())
    }
}

/// Returns an epoch's permutation: a Fisher–Yates shuffle (Knuth, TAOCP 2, algorithm P). The epoch selects the
/// generator's stream.
fn order(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = Pcg64::new(u128::from(seed), u128::from(epoch));
    let mut order: Vec<usize> = (0..rows).collect();
    for last in (1..rows).rev() {
        let other = random.random_range(0..=last as u64) as usize;
        order.swap(last, other);
    }
    order
}

/// The limits of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatchLimits {
    /// The maximum number of rows.
    pub rows: usize,
    /// The maximum number of tokens. A longer row is a micro-batch of its own.
    pub tokens: usize,
}

/// Splits an effective batch into micro-batches within the limits `most`. Rows are sorted by length, the longest first,
/// so that a micro-batch holds rows of similar length. The gradients are summed over all micro-batches, so their order
/// and number do not change the result.
#[must_use]
pub fn micro_batches(
    mut rows: Vec<usize>,
    lengths: impl Fn(usize) -> usize,
    most: MicroBatchLimits,
) -> Vec<Vec<usize>> {
    rows.sort_by_key(|&row| (std::cmp::Reverse(lengths(row)), row));
    let mut all: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for row in rows {
        let length = lengths(row);
        match all.last_mut() {
            Some(last) if last.len() < most.rows && tokens + length <= most.tokens => {
                last.push(row);
                tokens += length;
            }
            _ => {
                all.push(vec![row]);
                tokens = length;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(sampler: &mut Sampler, steps: Range<u64>) -> Vec<usize> {
        steps.flat_map(|step| sampler.batch(step)).collect()
    }

    #[test]
    fn an_epoch_holds_every_row_once_and_the_last_batch_is_kept() {
        let mut sampler = Sampler::new(10, 4, 42);
        let mut seen = epoch(&mut sampler, 1..4);
        assert_eq!(sampler.batch(3).len(), 2);
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let mut sampler = Sampler::new(50, 50, 42);
        let (first, second) = (sampler.batch(1), sampler.batch(2));
        assert_ne!(first, second);
        assert_ne!(first, (0..50).collect::<Vec<_>>());
        assert_ne!(first, Sampler::new(50, 50, 43).batch(1));
    }

    #[test]
    fn a_step_has_the_same_rows_in_any_order_of_steps() {
        let mut whole = Sampler::new(23, 5, 7);
        let all: Vec<_> = (1..=20).map(|step| whole.batch(step)).collect();
        let mut resumed = Sampler::new(23, 5, 7);
        for step in (11..=20).rev() {
            assert_eq!(resumed.batch(step), all[step as usize - 1]);
        }
    }

    #[test]
    fn the_place_counts_epochs_with_fraction() {
        let sampler = Sampler::new(10, 4, 0);
        assert_eq!(sampler.place(5), Place { epoch: 1, part: 4..8 });
        assert_eq!(sampler.epochs_after(3), 1.0);
        assert_eq!(sampler.epochs_after(5), 1.8);
    }

    fn cut(rows: usize, tokens: usize) -> Vec<Vec<usize>> {
        let lengths = [5, 9, 2, 9, 7];
        micro_batches(vec![4, 3, 2, 1, 0], |row| lengths[row], MicroBatchLimits { rows, tokens })
    }

    #[test]
    fn micro_batches_start_with_the_longest_row() {
        assert_eq!(cut(2, 1000), [vec![1, 3], vec![4, 0], vec![2]]);
    }

    #[test]
    fn micro_batches_hold_no_more_tokens_than_the_plan_and_a_longer_row_goes_alone() {
        assert_eq!(cut(5, 18), [vec![1, 3], vec![4, 0, 2]]);
        assert_eq!(cut(5, 17), [vec![1], vec![3, 4], vec![0, 2]]);
        assert_eq!(cut(5, 8), [vec![1], vec![3], vec![4], vec![0, 2]]);
        assert_eq!(cut(0, 0).len(), 5);
    }
}
