//! The training jobs that predicted durations are graded on: for each base, one job that measures its rate, and jobs
//! with other lengths, batches, ranks and plans.

use attune_domain::{
    dataset::file_facts::FileFacts,
    memory::BatchSplit,
    spec::{
        Auto, Requested,
        request::{AdapterFields, Hyperparameters, TrainerFields},
    },
};
use serde_json::json;

use super::memory_cases::Shape;

/// The tokens of a job, some ten seconds on two cores.
const TOKENS: u64 = 12_288;
/// The fewest steps of a job.
const FEWEST_STEPS: u64 = 6;
/// The tokens of a row without a loss: the question, and the words of the template around it and the answer.
const WITHOUT_LOSS: u64 = 5;

/// A job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PaceCase {
    /// The number of the base.
    pub(crate) base: usize,
    pub(crate) shape: Shape,
    /// The number of tokens of every row.
    pub(crate) length: u64,
    pub(crate) batch: u32,
    pub(crate) micro: u32,
    pub(crate) rank: u32,
    pub(crate) dora: bool,
    pub(crate) checkpointing: bool,
}

impl PaceCase {
    pub(crate) const fn split(&self) -> BatchSplit {
        BatchSplit { micro_batch_size: self.micro, checkpointing: self.checkpointing }
    }

    pub(crate) fn requested(&self) -> Requested {
        Requested {
            hyperparameters: Hyperparameters {
                n_epochs: Auto(Some(1)),
                batch_size: Auto(Some(self.batch.into())),
                ..Hyperparameters::default()
            },
            adapter: AdapterFields {
                rank: Some(self.rank.into()),
                use_dora: Some(self.dora),
                ..AdapterFields::default()
            },
            trainer: TrainerFields {
                max_length: Some(4096),
                micro_batch_size: Some(Auto(Some(self.micro.into()))),
                gradient_checkpointing: Some(Auto(Some(self.checkpointing))),
                ..TrainerFields::default()
            },
            ..Requested::default()
        }
    }

    /// Returns the number of rows: as many as make whole steps of about the same number of tokens in all jobs.
    pub(crate) fn row_count(&self) -> u64 {
        let step = u64::from(self.batch) * self.length;
        (TOKENS / step).max(FEWEST_STEPS) * u64::from(self.batch)
    }

    pub(crate) fn facts(&self) -> FileFacts {
        let (rows, length) = (self.row_count(), self.length);
        FileFacts { rows, tokens: rows * length, trained_tokens: rows * (length - WITHOUT_LOSS), longest_row: length }
    }

    /// Returns the rows, which share nothing but their first word.
    pub(crate) fn rows(&self) -> String {
        let word = |row: u64, at: u64| format!("w{}", (at * at + 11 * at * row + 5 * row) % 50);
        let row = |row: u64| {
            let answer: Vec<_> = (0..self.length - WITHOUT_LOSS).map(|at| word(row, at)).collect();
            json!({"messages": [{"role": "user", "content": word(row, 1)},
                {"role": "assistant", "content": answer.join(" ")}]})
            .to_string()
                + "\n"
        };
        (0..self.row_count()).map(row).collect()
    }
}

/// Returns the bases: of all families, 12 to 45 million weights in their blocks.
fn shapes() -> [Shape; 4] {
    let of = |family, (layers, hidden, inner), (heads, key_heads), (vocabulary, tied)| Shape {
        family,
        layers,
        hidden,
        inner,
        heads,
        key_heads,
        vocabulary,
        tied,
    };
    [
        of("llama", (8, 512, 1536), (8, 4), (16_384, true)),
        of("qwen2", (12, 384, 1024), (6, 2), (32_768, false)),
        of("mistral", (6, 768, 2048), (12, 4), (8_192, false)),
        of("qwen3", (16, 320, 896), (5, 5), (16_384, true)),
    ]
}

/// Returns the jobs. The first of each base measures its rate.
pub(crate) fn cases() -> Vec<PaceCase> {
    let of_base = |(base, shape): (usize, Shape)| {
        let usual =
            PaceCase { base, shape, length: 256, batch: 4, micro: 4, rank: 16, dora: false, checkpointing: false };
        [
            usual,
            PaceCase { length: 1024, batch: 2, micro: 2, ..usual },
            PaceCase { length: 128, batch: 8, micro: 8, rank: 64, checkpointing: true, ..usual },
            PaceCase { length: 512, batch: 4, micro: 1, rank: 8, ..usual },
            PaceCase { dora: true, ..usual },
        ]
    };
    shapes().into_iter().enumerate().flat_map(of_base).collect()
}
