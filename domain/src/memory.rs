//! Estimates of the peak memory of a run or a replica, term by term, before it starts. Pure arithmetic over the model's
//! shape; comparing `run.measured_peak` with `run.predicted_peak` in the database shows the accuracy.
//!
//! Symbols: `t` tokens in a micro-batch, `c` hidden width, `h` query heads, `n` key heads, `d` head width, `f` inner
//! width, `r` rank, `v` vocabulary. Activations and unpacked weights are of the placement's number type; an adapter,
//! its gradients and its optimizer are in `f32`.
//!
//! Dropout has no term: its mask is regenerated from a seed, and the dropped-out input of a projection is freed before
//! that of the next one is computed.

use serde::{Deserialize, Serialize};

use crate::{
    architecture::{Architecture, PROJECTIONS},
    bytes::Bytes,
    placement::{ComputeKind, Placement},
    run::Plan,
    spec::{Optimizer, Quantization, TrainSpec},
};

/// The next attempt after a run that ran out of memory.
pub mod ladder;

/// The memory of libtorch, its thread pools and the program itself, with nothing loaded.
const PROCESS: Bytes = Bytes::mib(350);

/// The maximum number of tokens in a micro-batch that a plan chooses: above it, a step on a CPU takes more memory but
/// is not faster.
pub const MICRO_BATCH_TOKENS: u64 = 1024;

/// The number of trained positions that the head and the loss process at once.
pub const LOSS_CHUNK_ROWS: u64 = 512;

/// The maximum number of prompt tokens in one step of a replica, so that running answers do not wait long.
pub const PREFILL_TOKENS: u64 = 128;

/// The number of tokens in one step of a replica that an estimate assumes: those of one prompt, and one of each running
/// answer.
const STEP_TOKENS: u64 = 4 * PREFILL_TOKENS;

const F32: u64 = 4;

/// The bytes of one logit: a half-precision logit and its `f32` copy, or an `f32` logit and half as much for
/// temporaries.
const LOGIT: u64 = 6;

/// The number of values of an 8-bit optimizer that share a scale.
const OPTIMIZER_BLOCK: u64 = 256;

/// The training workload of an estimate.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The model's architecture.
    pub architecture: &'a Architecture,
    /// The training parameters.
    pub train: &'a TrainSpec,
    /// The number of tokens of the longest row in the training and validation files.
    pub longest_row: u64,
}

/// The micro-batch size, and whether activations are recomputed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSplit {
    /// The number of rows in one forward pass.
    pub micro_batch_size: u32,
    /// Gradient checkpointing: only each block's input is kept.
    pub checkpointing: bool,
}

/// A peak memory estimate and its terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// The name and bytes of each term, in the order of a run.
    pub terms: Vec<(String, Bytes)>,
    /// The sum of the terms.
    pub peak: Bytes,
}

impl MemoryEstimate {
    fn of(terms: &[(&str, Bytes)]) -> Self {
        let peak = terms.iter().map(|(_, bytes)| *bytes).sum();
        Self { terms: terms.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(), peak }
    }

    /// Returns the terms as text, largest first: `base 61.0 MiB, activations 1.2 GiB`.
    #[must_use]
    pub fn breakdown(&self) -> String {
        let mut terms: Vec<_> = self.terms.iter().collect();
        terms.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        terms.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect::<Vec<_>>().join(", ")
    }
}

/// Estimates the peak of a training run.
#[must_use]
pub fn training(work: Workload<'_>, placement: Placement, split: BatchSplit) -> MemoryEstimate {
    let (model, kind) = (work.architecture, placement.compute);
    let tokens = micro_batch_tokens(work, split.micro_batch_size).max(work.longest_row);
    let block = block_floats(model, work.train.adapter.rank);
    let kept = if split.checkpointing {
        model.num_hidden_layers * model.hidden_size + block
    } else {
        model.num_hidden_layers * block
    };
    let adapter = Bytes(adapter_weights(model, work.train) * F32);
    let optimizer = optimizer(model, work.train);
    let mut terms = vec![
        ("process", PROCESS),
        ("base", base(model, work.train.quantization, kind)),
        ("embeddings", Bytes(model.embedding_weights() * kind.bytes())),
        ("adapter", adapter),
        ("gradients", adapter),
        ("optimizer", optimizer),
        // A second copy, for a range test of learning rates or a rollback to the last good state.
        ("spare state", Bytes(adapter.0 + optimizer.0)),
        ("activations", per_token(tokens, kept, kind)),
        ("workspace", per_token(tokens, workspace_floats(model), kind)),
        ("unpacked weight", unpacked(model, kind)),
        ("logits", Bytes(LOSS_CHUNK_ROWS.min(tokens) * model.vocab_size * LOGIT)),
    ];
    if work.train.trainer.early_stopping_patience > 0 {
        // The adapter of the best validation, before it replaces the last one.
        terms.push(("best adapter", adapter));
    }
    MemoryEstimate::of(&terms)
}

/// Estimates the peak of a training run with a given plan.
#[must_use]
pub fn with_plan(work: Workload<'_>, plan: &Plan) -> MemoryEstimate {
    let Plan { micro_batch_size, checkpointing, placement, .. } = *plan;
    training(work, placement, BatchSplit { micro_batch_size, checkpointing })
}

/// Returns the bytes of `floats` values of this kind for each of `tokens`. A job and a config bound each factor, but
/// not their product, so it saturates.
const fn per_token(tokens: u64, floats: u64, kind: ComputeKind) -> Bytes {
    Bytes(tokens.saturating_mul(floats).saturating_mul(kind.bytes()))
}

/// Returns the maximum number of tokens in one forward pass. A micro-batch size that the job requests is not reduced.
fn micro_batch_tokens(work: Workload<'_>, micro_batch_size: u32) -> u64 {
    let whole = u64::from(micro_batch_size) * work.longest_row;
    if work.train.trainer.micro_batch_size.is_some() { whole } else { whole.min(MICRO_BATCH_TOKENS) }
}

/// Chooses the fastest split of the batch that fits into `limit`: the largest micro-batch, and for each size no
/// checkpointing before checkpointing. Sizes that the job requests are kept; the rows of a step never change. Every
/// offer is a machine's processor, so a new plan has the default placement.
///
/// # Errors
/// The estimate of the smallest split, if even that does not fit.
pub fn plan(work: Workload<'_>, limit: Bytes, threads: u32) -> Result<(Plan, MemoryEstimate), MemoryEstimate> {
    let placement = Placement::default();
    for split in splits(work) {
        let estimate = training(work, placement, split);
        if estimate.peak <= limit {
            let BatchSplit { micro_batch_size, checkpointing } = split;
            let predicted_peak = estimate.peak;
            let micro_batch_tokens = micro_batch_tokens(work, micro_batch_size);
            return Ok((
                Plan { micro_batch_size, micro_batch_tokens, checkpointing, threads, predicted_peak, placement },
                estimate,
            ));
        }
    }
    Err(smallest(work))
}

/// Estimates the smallest split: one row at a time, with checkpointing, unless the job requests otherwise.
#[must_use]
pub fn smallest(work: Workload<'_>) -> MemoryEstimate {
    let micro_batch_size = work.train.trainer.micro_batch_size.unwrap_or(1);
    let checkpointing = work.train.trainer.gradient_checkpointing.unwrap_or(true);
    training(work, Placement::default(), BatchSplit { micro_batch_size, checkpointing })
}

/// Returns the largest micro-batch that a plan chooses without a request.
#[must_use]
pub fn largest_micro_batch(work: Workload<'_>) -> u32 {
    let rows =
        (MICRO_BATCH_TOKENS / work.longest_row.max(1)).clamp(1, u64::from(work.train.hyperparameters.batch_size));
    u32::try_from(rows).unwrap_or(1)
}

/// Returns all splits that the job allows, fastest first.
fn splits(work: Workload<'_>) -> impl Iterator<Item = BatchSplit> {
    let asked = work.train.trainer.micro_batch_size;
    let largest = asked.unwrap_or_else(|| largest_micro_batch(work));
    let ways: &[bool] = match work.train.trainer.gradient_checkpointing {
        None => &[false, true],
        Some(false) => &[false],
        Some(true) => &[true],
    };
    std::iter::successors(Some(largest), move |rows| (*rows > 1 && asked.is_none()).then_some(rows / 2)).flat_map(
        |micro_batch_size| ways.iter().map(move |&checkpointing| BatchSplit { micro_batch_size, checkpointing }),
    )
}

/// Estimates the peak of a replica whose adapters, keys and values may take `budget`, at the default placement. The
/// base is not quantized: quantized weights are dequantized once at startup, and the quantized copy is kept until then.
#[must_use]
pub fn serving(model: &Architecture, quantization: Quantization, budget: Bytes) -> MemoryEstimate {
    let kind = Placement::default().compute;
    let mut terms = vec![
        ("process", PROCESS),
        ("base", base(model, Quantization::None, kind)),
        ("embeddings", Bytes(model.embedding_weights() * kind.bytes())),
        ("workspace", Bytes(STEP_TOKENS * workspace_floats(model) * kind.bytes())),
        ("logits", Bytes(3 * 16 * model.vocab_size * kind.bytes())),
        ("adapters, keys and values", budget),
    ];
    if quantization != Quantization::None {
        terms.push(("quantized weights", base(model, quantization, kind)));
    }
    MemoryEstimate::of(&terms)
}

/// Returns the trained weights of one block, a number per tensor: the two factors of each adapted projection and, for
/// DoRA, its magnitudes, one per output.
fn block_tensors<'a>(model: &'a Architecture, train: &'a TrainSpec) -> impl Iterator<Item = u64> + 'a {
    let rank = u64::from(train.adapter.rank);
    let widths = train.adapter.target_modules.iter().filter_map(|name| model.projection(name));
    widths.flat_map(move |(outs, ins)| [outs * rank, ins * rank, if train.adapter.use_dora { outs } else { 0 }])
}

/// Returns the number of trained weights.
fn adapter_weights(model: &Architecture, train: &TrainSpec) -> u64 {
    block_tensors(model, train).sum::<u64>() * model.num_hidden_layers
}

/// Estimates the two moments of each trained weight, in `f32`, or in a byte each with a scale for every block of a
/// tensor.
///
/// Source of the blocks: Dettmers et al., arXiv:2110.02861, §2.1.
fn optimizer(model: &Architecture, train: &TrainSpec) -> Bytes {
    let bytes = |weights: u64| match train.trainer.optimizer {
        Optimizer::Adamw => weights * F32,
        Optimizer::Adamw8bit => weights + weights.div_ceil(OPTIMIZER_BLOCK) * F32,
    };
    Bytes(2 * block_tensors(model, train).map(bytes).sum::<u64>() * model.num_hidden_layers)
}

/// Estimates the blocks' projections. NF4 takes 4 bits per weight and a scale per 64 weights: 32 bits, or with double
/// quantization 8 bits and a second-level scale and offset per 256 scales. Int8 takes a byte per weight and a scale per
/// output. A weight that is not quantized is of the computation's kind.
///
/// Source: Dettmers et al., arXiv:2305.14314, §3 (0.5 and 0.127 bits per weight).
fn base(model: &Architecture, quantization: Quantization, kind: ComputeKind) -> Bytes {
    let weights = model.projection_weights();
    let thousandths_of_bits = match quantization {
        Quantization::Nf4 { double_quant: true } => 4_127,
        Quantization::Nf4 { double_quant: false } => 4_500,
        Quantization::Int8 => 8_000,
        Quantization::None => 8_000 * u128::from(kind.bytes()),
    };
    let scales = if quantization == Quantization::Int8 { outputs(model) * F32 } else { 0 };
    Bytes((u128::from(weights) * thousandths_of_bits / 8_000) as u64 + scales)
}

/// Returns the number of outputs of all projections of all blocks.
fn outputs(model: &Architecture) -> u64 {
    let block: u64 = PROJECTIONS.iter().filter_map(|name| model.projection(name)).map(|(outs, _)| outs).sum();
    block * model.num_hidden_layers
}

/// Estimates the largest weight that is dequantized, or copied to add the adapter, while it is used. The model fuses q,
/// k and v, and gate and up.
fn unpacked(model: &Architecture, kind: ComputeKind) -> Bytes {
    let heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim;
    let largest = (2 * model.intermediate_size * model.hidden_size).max(heads * model.hidden_size);
    Bytes(largest * kind.bytes())
}

/// Returns the floats per token that a block keeps for its backward pass: input, q, k and v (twice, if q and k are
/// normalized), the output of attention, the middle residual, gate and up, and the low-rank intermediates.
fn block_floats(model: &Architecture, rank: u32) -> u64 {
    let query = model.num_attention_heads * model.head_dim;
    let heads = query + 2 * model.num_key_value_heads * model.head_dim;
    let normed = if model.layers.qk_norm { heads } else { 0 };
    let low = 4 * u64::from(rank);
    2 * model.hidden_size + heads + normed + query + 2 * model.intermediate_size + low
}

/// Returns the temporary floats per token of a block: the gradients of the widest activations, and recomputed values.
fn workspace_floats(model: &Architecture) -> u64 {
    let heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim;
    6 * model.hidden_size + 3 * heads + 6 * model.intermediate_size
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{
        Auto, Requested,
        request::{AdapterFields, Hyperparameters, QuantizationFields, TrainerFields},
    };

    const SMOLLM2: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "tie_word_embeddings": true}"#;

    fn with_work<T>(batch: i64, longest_row: u64, f: impl FnOnce(Workload<'_>) -> T) -> T {
        asking(&batches_of(batch, TrainerFields::default()), longest_row, f)
    }

    fn batches_of(rows: i64, trainer: TrainerFields) -> Requested {
        let hyperparameters = Hyperparameters { batch_size: Auto(Some(rows)), ..Hyperparameters::default() };
        Requested { hyperparameters, trainer, ..Requested::default() }
    }

    fn with_adapter(adapter: AdapterFields) -> Requested {
        Requested { adapter, ..Requested::default() }
    }

    fn with_trainer(trainer: TrainerFields) -> Requested {
        Requested { trainer, ..Requested::default() }
    }

    fn asking<T>(asked: &Requested, longest_row: u64, f: impl FnOnce(Workload<'_>) -> T) -> T {
        let architecture = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let train = TrainSpec::check(asked, 360, 8192).unwrap();
        f(Workload { architecture: &architecture, train: &train, longest_row })
    }

    /// Returns the bytes of a term of the smallest split; 0: the estimate has no such term.
    fn term(asked: &Requested, name: &str) -> u64 {
        let terms = asking(asked, 128, smallest).terms;
        terms.into_iter().find(|(known, _)| known == name).map_or(0, |(_, bytes)| bytes.0)
    }

    #[test]
    fn the_terms_add_up_to_the_peak() {
        with_work(8, 128, |work| {
            let estimate =
                training(work, Placement::default(), BatchSplit { micro_batch_size: 8, checkpointing: false });
            assert_eq!(estimate.terms.iter().map(|(_, bytes)| *bytes).sum::<Bytes>(), estimate.peak);
            // 106 M projection weights at 4.127 bits, 28 M embedding weights in f32.
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
            let whole =
                training(work, Placement::default(), BatchSplit { micro_batch_size: 8, checkpointing: false }).peak;
            let (short, _) = plan(work, Bytes(whole.0 - 1), 2).unwrap();
            assert_eq!((short.micro_batch_size, short.checkpointing), (8, true));
            let (shorter, _) = plan(work, Bytes(short.predicted_peak.0 - 1), 2).unwrap();
            assert!(shorter.micro_batch_size < 8);
        });
    }

    #[test]
    fn when_nothing_fits_the_smallest_need_is_reported() {
        with_work(8, 8192, |work| {
            assert_eq!(plan(work, Bytes::mib(100), 2).unwrap_err(), smallest(work));
        });
    }

    #[test]
    fn the_logits_are_those_of_one_chunk_of_the_loss() {
        let logits = |rows: u64| {
            let estimate = with_work(8, rows, smallest);
            estimate.terms.into_iter().find(|(name, _)| name == "logits").map(|(_, bytes)| bytes.0)
        };
        assert_eq!(logits(128), Some(128 * 49_152 * 6));
        assert_eq!(logits(512), Some(512 * 49_152 * 6));
        assert_eq!(logits(4096), logits(512));
    }

    /// 30 blocks; rank-16 factors of seven projections: 4,884,480 weights; 5184 outputs per block.
    const LORA: u64 = 4_884_480;

    #[test]
    fn each_option_costs_its_own_term_and_no_other() {
        let plain = Requested::default();
        assert_eq!(term(&plain, "adapter"), LORA * 4);
        assert_eq!(term(&plain, "optimizer"), LORA * 8);
        assert_eq!(term(&plain, "spare state"), LORA * 12);
        assert_eq!(term(&plain, "best adapter"), 0);

        let dora = with_adapter(AdapterFields { use_dora: Some(true), ..AdapterFields::default() });
        assert_eq!(term(&dora, "adapter"), (LORA + 30 * 5184) * 4);
        assert_eq!(term(&dora, "activations"), term(&plain, "activations"));

        let dropout = with_adapter(AdapterFields { lora_dropout: Some(0.1), ..AdapterFields::default() });
        assert_eq!(asking(&dropout, 128, smallest), asking(&plain, 128, smallest));

        let patient =
            TrainerFields { early_stopping_patience: Some(2), eval_every_steps: Some(5), ..TrainerFields::default() };
        assert_eq!(term(&with_trainer(patient), "best adapter"), LORA * 4);
    }

    #[test]
    fn eight_bit_moments_take_two_bytes_a_weight_and_two_scales_a_block() {
        let asked = TrainerFields { optimizer: Some("adamw_8bit".into()), ..TrainerFields::default() };
        let asked = with_trainer(asked);
        // Each factor of rank 16 over 192, 576 or 1536 is a whole number of blocks of 256.
        assert_eq!(term(&asked, "optimizer"), LORA * 2 + LORA / 256 * 8);
        let target_modules = Some(vec!["k_proj".into()]);
        let ragged = AdapterFields { rank: Some(1), target_modules, ..AdapterFields::default() };
        let ragged = Requested { adapter: ragged, ..asked };
        // 192 + 576 values: one block and three blocks.
        assert_eq!(term(&ragged, "optimizer"), 30 * (2 * 768 + 2 * 4 * 4));
    }

    #[test]
    fn an_int8_base_takes_a_byte_a_weight_and_a_scale_an_output() {
        let quantization = QuantizationFields { r#type: Some("int8".into()), double_quant: None };
        let asked = Requested { quantization, ..Requested::default() };
        assert_eq!(term(&asked, "base"), 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576) + 30 * 5184 * 4);
        let nf4 = Requested::default();
        assert!(term(&asked, "base") > term(&nf4, "base"));
        assert_eq!(term(&asked, "unpacked weight"), term(&nf4, "unpacked weight"));
    }

    #[test]
    fn what_the_job_requests_is_not_chosen() {
        let plenty = Bytes::mib(1 << 20);
        let asked = TrainerFields {
            micro_batch_size: Some(Auto(Some(16))),
            gradient_checkpointing: Some(Auto(Some(true))),
            ..TrainerFields::default()
        };
        let asked = batches_of(16, asked);
        asking(&asked, 128, |work| {
            let (plan, estimate) = plan(work, plenty, 2).unwrap();
            assert_eq!((plan.micro_batch_size, plan.micro_batch_tokens, plan.checkpointing), (16, 2048, true));
            assert_eq!(super::plan(work, Bytes(estimate.peak.0 - 1), 2).unwrap_err(), estimate);
        });
        let open = TrainerFields { gradient_checkpointing: Some(Auto(Some(false))), ..TrainerFields::default() };
        let open = batches_of(16, open);
        asking(&open, 128, |work| {
            let (first, estimate) = plan(work, plenty, 2).unwrap();
            assert_eq!((first.micro_batch_size, first.checkpointing), (8, false));
            let (less, _) = plan(work, Bytes(estimate.peak.0 - 1), 2).unwrap();
            assert_eq!((less.micro_batch_size, less.checkpointing), (4, false));
        });
    }

    proptest! {
        /// A plan never exceeds its limit, and more memory never results in a smaller micro-batch.
        #[test]
        fn plans_fit_and_grow_with_the_memory(
            batch in 1_i64..64,
            longest in 1_u64..4096,
            limit in 400_u64..8192,
            more in 0_u64..8192,
        ) {
            with_work(batch, longest, |work| {
                if let Ok((small, estimate)) = plan(work, Bytes::mib(limit), 2) {
                    prop_assert!(estimate.peak <= Bytes::mib(limit));
                    let (large, _) = plan(work, Bytes::mib(limit + more), 2).unwrap();
                    prop_assert!(large.micro_batch_size >= small.micro_batch_size);
                    prop_assert!(u64::from(large.micro_batch_size) <= work.train.hyperparameters.batch_size.into());
                }
                Ok(())
            })?;
        }
    }
}
