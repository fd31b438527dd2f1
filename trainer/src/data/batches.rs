//! Packing of rows into micro-batches.

use attune_model::{batch::PackedBatch, noise::Noise, train::TrainOptions};
use attune_text::rows::TrainRow;
use rand::RngExt;
use rand_pcg::Pcg64;

use crate::{error::TrainerError, objective::interface::Objective, session::Session};

/// Packs the rows with the indices `part` into one batch, as the objective weights them.
pub(crate) fn packed(
    objective: &dyn Objective,
    rows: &[TrainRow],
    part: &[usize],
) -> Result<PackedBatch, TrainerError> {
    let mut batch = PackedBatch::new();
    for row in part.iter().filter_map(|&row| rows.get(row)) {
        for sequence in objective.sequences(row) {
            batch.push(sequence.ids, &sequence.weights)?;
        }
    }
    Ok(batch)
}

/// Returns a function from a row's index to its number of tokens.
pub(crate) fn length_of(rows: &[TrainRow]) -> impl Fn(usize) -> usize + '_ {
    |row| rows.get(row).map_or(0, TrainRow::tokens)
}

/// Returns the file's line numbers of the `picked` rows, sorted.
pub(crate) fn lines_of(rows: &[TrainRow], picked: &[usize]) -> Vec<u64> {
    let mut lines: Vec<u64> = picked.iter().filter_map(|&row| Some(rows.get(row)?.line)).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// Returns the options of a micro-batch of an effective batch with `normaliser` trained tokens. Dropout and noise
/// depend only on the seed and on `place`, so a resumed run gets the same ones as an uninterrupted run.
pub(crate) fn options(session: &Session, normaliser: u64, place: NoisePlace) -> TrainOptions {
    let train = &session.spec.train;
    let noise = Noise { seed: place.seed(train.seed), neftune_noise_alpha: train.trainer.neftune_noise_alpha };
    let checkpointing = session.spec.plan.checkpointing;
    TrainOptions { checkpointing, noise: Some(noise), ..TrainOptions::new(normaliser) }
}

/// The step and micro-batch that noise is generated for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoisePlace {
    pub(crate) step: u64,
    pub(crate) micro_batch: usize,
}

impl NoisePlace {
    fn seed(self, seed: u64) -> u64 {
        let mut random = Pcg64::new(u128::from(seed), u128::from(self.step) << 64 | self.micro_batch as u128);
        random.random()
    }
}
