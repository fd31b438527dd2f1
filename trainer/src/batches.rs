//! Rows into what goes through the decoder at once.

use attune_model::{batch::PackedBatch, train::TrainOptions};

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

/// How the plan runs a micro-batch of an effective batch with `normaliser` trained tokens.
pub(crate) fn options(session: &Session, normaliser: u64) -> TrainOptions {
    TrainOptions { checkpointing: session.spec.plan.checkpointing, normaliser }
}
