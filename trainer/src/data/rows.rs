//! Tokenizes a dataset file. The platform has validated the file with the same code; a row that still cannot be used is
//! reported with its line.

use std::{fs::File, io::Read, path::Path};

use attune_text::{
    model::TextModel,
    rows::{RowPolicy, RowReader, TrainRow},
};

use crate::error::TrainerError;

/// Reads every row of the file at `path`, under the job's policy. `param` names the request's field that the file came
/// from.
///
/// # Errors
/// [`TrainerError::Data`]: lines that are not valid rows, that have nothing to train on, or that are too long.
/// [`TrainerError::Node`]: the file cannot be read.
pub fn read_rows(
    path: &Path,
    text: &TextModel,
    policy: RowPolicy,
    param: &'static str,
) -> Result<Vec<TrainRow>, TrainerError> {
    let mut file = File::open(path).map_err(TrainerError::io(path))?;
    let mut reader = RowReader::new(text, policy);
    let mut rows = Vec::new();
    let mut part = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut part).map_err(TrainerError::io(path))?;
        if count == 0 {
            break;
        }
        reader.push(&part[..count], &mut |row| rows.push(row));
    }
    let stats = reader.finish(&mut |row| rows.push(row)).map_err(|why| TrainerError::Data { param, why })?;
    for note in stats.changes(policy.max_length).into_iter().chain(stats.packing(policy.max_length)) {
        tracing::info!(param, "{param}: {note}");
    }
    Ok(rows)
}
