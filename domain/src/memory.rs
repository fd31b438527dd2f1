//! How much memory a run or a replica will take at its peak, term by term, before it starts. Pure arithmetic over the
//! model's shape; `run.measured_peak` beside `run.predicted_peak` in the database says how good it is.
//!
//! Letters: `t` tokens in a micro-batch, `c` hidden width, `h` query heads, `n` key heads, `d` head width, `f` inner
//! width, `r` rank, `v` vocabulary. Everything that is computed with is `f32`.

use serde::{Deserialize, Serialize};

use crate::{
    architecture::Architecture,
    bytes::Bytes,
    run::Plan,
    spec::{Quantization, TrainSpec},
};

/// libtorch, its thread pools and the program itself, with nothing loaded.
const PROCESS: Bytes = Bytes::mib(350);

/// More tokens than this in one micro-batch make a step no faster on a CPU, only larger.
pub const MICRO_BATCH_TOKENS: u64 = 1024;

/// Trained positions that the head and the loss look at together.
pub const LOSS_CHUNK_ROWS: u64 = 256;

/// Tokens of a prompt that a replica reads together.
pub const PREFILL_TOKENS: u64 = 512;

const F32: u64 = 4;

/// What is to be trained.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// On which model.
    pub architecture: &'a Architecture,
    /// How.
    pub train: &'a TrainSpec,
    /// Tokens of the longest row of training and validation file.
    pub longest_row: u64,
}

/// How the effective batch is cut, and what is kept between forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Rows that go through the decoder at once.
    pub micro_batch_size: u32,
    /// Only each block's input is kept.
    pub checkpointing: bool,
}

/// A peak and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// In the order of a run: name and bytes.
    pub terms: Vec<(String, Bytes)>,
    /// Their sum.
    pub peak: Bytes,
}

impl MemoryEstimate {
    fn of(terms: &[(&str, Bytes)]) -> Self {
        let peak = terms.iter().map(|(_, bytes)| *bytes).sum();
        Self { terms: terms.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(), peak }
    }

    /// The terms in words, largest first: `base 61.0 MiB, activations 1.2 GiB`.
    #[must_use]
    pub fn breakdown(&self) -> String {
        let mut terms: Vec<_> = self.terms.iter().collect();
        terms.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        terms.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect::<Vec<_>>().join(", ")
    }
}

/// The peak of a training run.
#[must_use]
pub fn training(work: Workload<'_>, cut: Cut) -> MemoryEstimate {
    let model = work.architecture;
    let tokens = (u64::from(cut.micro_batch_size) * work.longest_row).min(MICRO_BATCH_TOKENS.max(work.longest_row));
    let block = block_floats(model, work.train.adapter.rank);
    let kept = if cut.checkpointing {
        model.num_hidden_layers * model.hidden_size + block
    } else {
        model.num_hidden_layers * block
    };
    let adapter = adapter_weights(model, work.train);
    MemoryEstimate::of(&[
        ("process", PROCESS),
        ("base", base(model, work.train.quantization)),
        ("embeddings", Bytes(model.embedding_weights() * F32)),
        ("adapter", Bytes(adapter * F32)),
        ("gradients", Bytes(adapter * F32)),
        ("optimizer", Bytes(adapter * 2 * F32)),
        ("activations", Bytes(tokens * kept * F32)),
        ("workspace", Bytes(tokens * workspace_floats(model) * F32)),
        ("dequantised weight", scratch(model, work.train.quantization)),
        ("logits", Bytes(3 * LOSS_CHUNK_ROWS.min(tokens) * model.vocab_size * F32)),
    ])
}

/// The way to cut the batch that is fastest among those that fit into `limit`: the largest micro-batch, rather without
/// checkpointing.
///
/// # Errors
/// The estimate of the smallest cut there is, if even that does not fit.
pub fn plan(work: Workload<'_>, limit: Bytes, threads: u32) -> Result<(Plan, MemoryEstimate), MemoryEstimate> {
    for cut in cuts(work) {
        let estimate = training(work, cut);
        if estimate.peak <= limit {
            let Cut { micro_batch_size, checkpointing } = cut;
            let predicted_peak = estimate.peak;
            let micro_batch_tokens = MICRO_BATCH_TOKENS.min(u64::from(micro_batch_size) * work.longest_row);
            return Ok((
                Plan { micro_batch_size, micro_batch_tokens, checkpointing, threads, predicted_peak },
                estimate,
            ));
        }
    }
    Err(smallest(work))
}

/// The estimate of the smallest cut there is: one row at a time, checkpointed.
#[must_use]
pub fn smallest(work: Workload<'_>) -> MemoryEstimate {
    training(work, Cut { micro_batch_size: 1, checkpointing: true })
}

/// All cuts, fastest first.
fn cuts(work: Workload<'_>) -> impl Iterator<Item = Cut> {
    let rows = (MICRO_BATCH_TOKENS / work.longest_row.max(1)).clamp(1, u64::from(work.train.effective_batch_size));
    let largest = u32::try_from(rows).unwrap_or(1);
    std::iter::successors(Some(largest), |rows| (*rows > 1).then_some(rows / 2))
        .flat_map(|micro_batch_size| [false, true].map(|checkpointing| Cut { micro_batch_size, checkpointing }))
}

/// The peak of a replica whose adapters, keys and values may take `budget`. It holds its base in `f32`.
#[must_use]
pub fn serving(model: &Architecture, budget: Bytes) -> MemoryEstimate {
    MemoryEstimate::of(&[
        ("process", PROCESS),
        ("base", base(model, Quantization::None)),
        ("embeddings", Bytes(model.embedding_weights() * F32)),
        ("workspace", Bytes(PREFILL_TOKENS * workspace_floats(model) * F32)),
        ("logits", Bytes(3 * 16 * model.vocab_size * F32)),
        ("adapters, keys and values", budget),
    ])
}

/// Weights of the factors of all adapted projections.
fn adapter_weights(model: &Architecture, train: &TrainSpec) -> u64 {
    let widths: u64 =
        train.adapter.target_modules.iter().filter_map(|name| model.projection(name)).map(|(o, i)| o + i).sum();
    widths * u64::from(train.adapter.rank) * model.num_hidden_layers
}

/// The blocks' projections. NF4 takes 4 bits a weight and a scale for each 64: 32 bits, or 8 bits and their own scale
/// and offset for each 256 when the scales are quantised too.
///
/// Source: Dettmers et al., arXiv:2305.14314, §3 (0.5 and 0.127 bits a weight).
fn base(model: &Architecture, quantization: Quantization) -> Bytes {
    let weights = model.projection_weights();
    let thousandths_of_bits = match quantization {
        Quantization::Nf4 { double_quant: true } => 4_127,
        Quantization::Nf4 { double_quant: false } => 4_500,
        Quantization::Int8 => 8_000,
        Quantization::None => 32_000,
    };
    Bytes((u128::from(weights) * thousandths_of_bits / 8_000) as u64)
}

/// The largest weight that is dequantised for the moment of its use. The model fuses q, k and v, and gate and up.
fn scratch(model: &Architecture, quantization: Quantization) -> Bytes {
    if quantization == Quantization::None {
        return Bytes(0);
    }
    let heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim;
    let largest = (2 * model.intermediate_size * model.hidden_size).max(heads * model.hidden_size);
    Bytes(largest * F32)
}

/// Floats that a block keeps of each token for its backward: input, q, k and v (twice, where q and k are normed), what
/// attention gave, the middle residual, gate and up, and the low-rank halves.
fn block_floats(model: &Architecture, rank: u32) -> u64 {
    let query = model.num_attention_heads * model.head_dim;
    let heads = query + 2 * model.num_key_value_heads * model.head_dim;
    let normed = if model.qk_norm { heads } else { 0 };
    let low = 4 * u64::from(rank);
    2 * model.hidden_size + heads + normed + query + 2 * model.intermediate_size + low
}

/// Floats that pass through a block for each token and are gone after it: the backward's gradients of the widest rows,
/// and what is worked out anew.
fn workspace_floats(model: &Architecture) -> u64 {
    let heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim;
    6 * model.hidden_size + 3 * heads + 6 * model.intermediate_size
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::Requested;

    const SMOLLM2: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "tie_word_embeddings": true}"#;

    fn with_work<T>(batch: i64, longest_row: u64, f: impl FnOnce(Workload<'_>) -> T) -> T {
        let architecture = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let asked = Requested { effective_batch_size: Some(batch), ..Requested::default() };
        let train = TrainSpec::check(&asked, 360, 8192).unwrap();
        f(Workload { architecture: &architecture, train: &train, longest_row })
    }

    #[test]
    fn the_terms_add_up_to_the_peak() {
        with_work(8, 128, |work| {
            let estimate = training(work, Cut { micro_batch_size: 8, checkpointing: false });
            assert_eq!(estimate.terms.iter().map(|(_, bytes)| *bytes).sum::<Bytes>(), estimate.peak);
            // 106 M projection weights in 4.127 bits, 28 M embeddings in f32.
            assert!(estimate.breakdown().contains("base 52.2 MiB"), "{}", estimate.breakdown());
            assert!(estimate.breakdown().contains("embeddings 108.0 MiB"), "{}", estimate.breakdown());
        });
    }

    #[test]
    fn with_plenty_of_memory_the_micro_batch_is_as_large_as_its_tokens_allow() {
        let plan = with_work(16, 128, |work| plan(work, Bytes::mib(1 << 20), 2)).unwrap().0;
        assert_eq!((plan.micro_batch_size, plan.checkpointing), (8, false));
        let plan = with_work(4, 128, |work| super::plan(work, Bytes::mib(1 << 20), 2)).unwrap().0;
        assert_eq!((plan.micro_batch_size, plan.checkpointing), (4, false));
    }

    #[test]
    fn when_memory_is_short_checkpointing_comes_before_a_smaller_micro_batch() {
        with_work(8, 128, |work| {
            let whole = training(work, Cut { micro_batch_size: 8, checkpointing: false }).peak;
            let (short, _) = plan(work, Bytes(whole.0 - 1), 2).unwrap();
            assert_eq!((short.micro_batch_size, short.checkpointing), (8, true));
            let (shorter, _) = plan(work, Bytes(short.predicted_peak.0 - 1), 2).unwrap();
            assert!(shorter.micro_batch_size < 8);
        });
    }

    #[test]
    fn when_nothing_fits_the_smallest_need_is_told() {
        with_work(8, 8192, |work| {
            assert_eq!(plan(work, Bytes::mib(100), 2).unwrap_err(), smallest(work));
        });
    }

    proptest! {
        /// A plan never takes more than it may, and more memory never gives a smaller micro-batch.
        #[test]
        fn plans_fit_and_grow_with_the_memory(batch in 1_i64..64, longest in 1_u64..4096, limit in 400_u64..8192, more in 0_u64..8192) {
            with_work(batch, longest, |work| {
                if let Ok((small, estimate)) = plan(work, Bytes::mib(limit), 2) {
                    prop_assert!(estimate.peak <= Bytes::mib(limit));
                    let (large, _) = plan(work, Bytes::mib(limit + more), 2).unwrap();
                    prop_assert!(large.micro_batch_size >= small.micro_batch_size);
                    prop_assert!(u64::from(large.micro_batch_size) <= work.train.effective_batch_size.into());
                }
                Ok(())
            })?;
        }
    }
}
