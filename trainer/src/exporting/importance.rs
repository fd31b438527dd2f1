//! The importance matrix of an export: the mean squares of the projections' inputs, computed by the model that is
//! exported, over the rows of a file.
//!
//! Each row is a sequence of its own, as the model was trained on it; a long one is divided. Rows that the base's
//! tokenizer or template cannot encode are ignored.

use std::{fs::File, io::Read, path::Path};

use attune_domain::{
    architecture::Architecture,
    dataset::{Row, RowChecker},
    export::{BaseWeights, IMATRIX_CHUNK_TOKENS, IMATRIX_CHUNKS},
    placement::Placement,
    run::task::ExportTask,
    spec::Quantization,
};
use attune_gguf::export::importance::Importance;
use attune_model::{adapter::LoraAdapter, allocator, decoder::Decoder, importance::InputSquares, served::Hold};
use attune_text::{encode::Learnt, model::TextModel};

use super::inputs::ExportInputs;
use crate::{context::RunContext, error::TrainerError};

/// The time that chat templates receive as the current time: always the same, so that an export has the same bytes
/// again.
const TEMPLATE_NOW: i64 = 0;

/// The number of bytes of the file that are read at once.
const PART_BYTES: usize = 1 << 20;

/// The number of bytes after which the file is not read further, if its rows have not filled all chunks before: more
/// than the tokens of all chunks have.
const MOST_BYTES: u64 = IMATRIX_CHUNKS * IMATRIX_CHUNK_TOKENS * 1024;

/// Computes the matrix, if the export has one.
pub(super) fn compute(
    task: &ExportTask,
    (inputs, text): (&ExportInputs, &TextModel),
    context: &RunContext,
) -> Result<Option<Importance>, TrainerError> {
    let (Some(path), Some(file)) = (&inputs.calibration, &task.calibration) else { return Ok(None) };
    let decoder = load(task, inputs)?;
    let adapter = LoraAdapter::load(&inputs.adapter, decoder.architecture())?;
    let chunks = read(path, text, decoder.architecture())?;
    let mut squares = InputSquares::default();
    for chunk in &chunks {
        if context.events.is_stop_requested()? {
            return Err(TrainerError::Stopped { step: 0 });
        }
        let sequences: Vec<&[u32]> = chunk.iter().map(Vec::as_slice).collect();
        squares.add(&decoder, &sequences, Some(&adapter))?;
    }
    let columns = squares.means()?;
    drop((decoder, adapter, squares));
    allocator::return_freed_memory();
    tracing::info!(chunks = chunks.len(), "the importance matrix is computed");
    let chunks = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
    Ok(Some(Importance { columns, dataset: file.name.clone(), chunks }))
}

/// Loads the base with the weights that the adapter is merged into.
fn load(task: &ExportTask, inputs: &ExportInputs) -> Result<Decoder, TrainerError> {
    let placement = Placement::default();
    Ok(match task.spec.base_weights {
        BaseWeights::Dequantized => {
            Decoder::load_served(&inputs.base, task.quantization, placement, &inputs.packed_base, Hold::Packed)?
        }
        BaseWeights::Original => Decoder::load(&inputs.base, Quantization::None, placement)?,
    })
}

/// Reads the first rows of a file as chunks of sequences.
fn read(path: &Path, text: &TextModel, model: &Architecture) -> Result<Vec<Vec<Vec<u32>>>, TrainerError> {
    let most = IMATRIX_CHUNK_TOKENS.min(model.max_position_embeddings).max(1);
    let mut chunks = Chunks { most: usize::try_from(most).unwrap_or(usize::MAX), ..Chunks::default() };
    let mut take = |_line: u64, row: Row| match text.encode_row(&row, Learnt::All, TEMPLATE_NOW) {
        Ok(example) => chunks.add(&example.ids),
        Err(why) => tracing::debug!(%why, "a row is not part of the importance matrix"),
    };
    let mut file = File::open(path).map_err(TrainerError::io(path))?;
    let mut checker = RowChecker::new();
    let mut part = vec![0; PART_BYTES];
    let mut read = 0;
    loop {
        let count = file.read(&mut part).map_err(TrainerError::io(path))?;
        if count == 0 {
            // The last line may lack its end. Lines with defects are ignored like rows that cannot be encoded.
            let _ = checker.finish_with(&mut take);
            break;
        }
        checker.push_with(&part[..count], &mut take);
        read += count as u64;
        if read >= MOST_BYTES {
            break;
        }
    }
    let chunks = chunks.all;
    if chunks.is_empty() {
        let why = "no row of the importance matrix' file can be encoded with the base's tokenizer and chat template";
        return Err(TrainerError::Export(why.into()));
    }
    Ok(chunks)
}

/// Chunks that are being filled.
#[derive(Default)]
struct Chunks {
    /// The maximum number of tokens in a chunk.
    most: usize,
    all: Vec<Vec<Vec<u32>>>,
    /// The number of tokens in the last chunk.
    tokens: usize,
}

impl Chunks {
    /// Adds a sequence, divided where it is longer than a chunk. All that is beyond the maximum number of chunks is
    /// left out.
    fn add(&mut self, ids: &[u32]) {
        for ids in ids.chunks(self.most) {
            let is_full = self.all.len() as u64 >= IMATRIX_CHUNKS;
            match self.all.last_mut() {
                Some(open) if self.tokens + ids.len() <= self.most => {
                    open.push(ids.to_vec());
                    self.tokens += ids.len();
                }
                _ if !is_full => {
                    self.all.push(vec![ids.to_vec()]);
                    self.tokens = ids.len();
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_filled_in_order_and_their_number_is_limited() {
        let mut chunks = Chunks { most: 4, ..Chunks::default() };
        chunks.add(&[1, 2]);
        chunks.add(&[3, 4, 5]);
        chunks.add(&[6]);
        chunks.add(&[7, 8, 9, 10, 11, 12]);
        let wanted = [vec![vec![1, 2]], vec![vec![3, 4, 5], vec![6]], vec![vec![7, 8, 9, 10]], vec![vec![11, 12]]];
        assert_eq!(chunks.all, wanted);
        (0..1000).for_each(|_| chunks.add(&[1, 2, 3, 4]));
        assert_eq!(chunks.all.len() as u64, IMATRIX_CHUNKS);
    }
}
