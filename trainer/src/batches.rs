//! Rows into what goes through the decoder at once.

use attune_model::{batch::PackedBatch, noise::Noise, train::TrainOptions};
use rand::RngExt;
use rand_pcg::Pcg64;

use crate::{data::TrainRow, error::TrainerError, setup::Session};

/// The rows `part` behind one another.
pub(crate) fn packed(rows: &[TrainRow], part: &[usize]) -> Result<PackedBatch, TrainerError> {
    let mut batch = PackedBatch::new();
    for row in part.iter().filter_map(|&row| rows.get(row)) {
        batch.push(&row.example.ids, &row.example.trained)?;
    }
    Ok(batch)
}

/// Tokens of a row, by its number.
pub(crate) fn length_of(rows: &[TrainRow]) -> impl Fn(usize) -> usize + '_ {
    |row| rows.get(row).map_or(0, |row| row.example.ids.len())
}

/// How the plan runs a micro-batch of an effective batch with `normaliser` trained tokens: the how-many-th of which step.
pub(crate) fn options(session: &Session, normaliser: u64, (step, number): (u64, u64)) -> TrainOptions {
    let train = &session.spec.train;
    let is_noisy = train.adapter.lora_dropout > 0.0 || train.neftune_noise_alpha > 0.0;
    let noise = is_noisy
        .then(|| Noise { seed: noise_seed(train.seed, step, number), neftune_noise_alpha: train.neftune_noise_alpha });
    TrainOptions { checkpointing: session.spec.plan.checkpointing, noise, ..TrainOptions::new(normaliser) }
}

/// A function of the place alone, so that a step that is taken again, here or elsewhere, is the same step. Its streams are
/// not those of the order of rows, which are numbered by epochs.
fn noise_seed(seed: u64, step: u64, number: u64) -> u64 {
    Pcg64::new(u128::from(seed), (u128::from(step) + 1) << 64 | u128::from(number)).random()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_micro_batch_has_noise_of_its_own_and_the_same_each_time() {
        let places = || (0..3).flat_map(|seed| (0..40).flat_map(move |step| (0..8).map(move |n| (seed, step, n))));
        let seeds = || places().map(|(seed, step, number)| noise_seed(seed, step, number));
        assert_eq!(seeds().collect::<BTreeSet<_>>().len(), 3 * 40 * 8);
        assert!(seeds().eq(seeds()));
    }
}
