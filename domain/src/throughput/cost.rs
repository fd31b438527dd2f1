//! The operations of training a token: arithmetic over the shapes of the base and of the adapter, the lengths of the
//! rows, and the plan. A rate that one run measured predicts others by them.
//!
//! One operation is a floating-point operation of a large matmul. What runs at another rate is multiplied by that
//! rate's ratio. The ratios are fitted to docs/bench/train.csv (lengths 128 to 4096, batches, ranks 8 to 128, with and
//! without checkpointing), with matmuls at the 443 GFLOP/s that `gemm` measures there: the median error over the table
//! is 2 %, its 95th percentile 7 %. docs/BENCHMARKS.md describes its grading over other bases.
//!
//! A frozen weight takes two operations per token in the forward pass, two in the backward (it has no gradient), and
//! two when checkpointing recomputes the forward. The update `B·A` is added to the unpacked weight
//! (`model/src/nn/linear.rs`), so unpacking and the update cost the same for each micro-batch, whatever its length.

use super::tokens::JobTokens;
use crate::{
    architecture::Architecture,
    dataset::file_facts::FileFacts,
    memory::{self, BatchSplit, MICRO_BATCH_TOKENS, Workload},
    offer::Offer,
    run::Plan,
    spec::Quantization,
};

/// The operations of attention relative to those of a matmul: its products are small, and it has a softmax.
const ATTENTION: f64 = 1.9;

/// The operations of the head and the loss relative to those of a matmul: the logits of a chunk are read several times.
const HEAD: f64 = 2.3;

/// The operations of reading a weight and writing it: unpacking it, copying it, one pass of DoRA over it.
const WEIGHT_PASS: f64 = 85.0;

/// The passes over a weight with which DoRA scales its rows: a square, a sum and a product.
const DORA_SCALE_PASSES: f64 = 3.0;

/// The passes over a weight with which DoRA computes its gradients, without unpacking and matmuls.
const DORA_GRADIENT_PASSES: f64 = 6.0;

/// The operations of an optimizer step per trained weight, with clearing and clipping its gradient.
const OPTIMIZER: f64 = 2300.0;

/// The matmuls of attention's backward relative to those of its forward: five, and two.
const ATTENTION_BACKWARD: f64 = 2.5;

/// The files of a job: their token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobFacts {
    /// The training file's counts.
    pub training: FileFacts,
    /// The validation file's counts.
    pub validation: Option<FileFacts>,
}

/// The operations per token of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenCost {
    /// The operations per training token.
    pub trained: f64,
    /// The operations per validation token; 0 without a validation file.
    pub validated: f64,
}

impl TokenCost {
    /// Computes the operations per token of a job whose batches are split in this way.
    #[must_use]
    pub fn of(work: Workload<'_>, facts: JobFacts, split: BatchSplit) -> Self {
        let rows = |facts| Rows::of(work, facts, split);
        let forward = |facts| forward(work, rows(facts));
        Self {
            trained: forward(facts.training) + backward(work, rows(facts.training), split.checkpointing),
            validated: facts.validation.map_or(0.0, forward),
        }
    }

    /// Computes the operations per token of a job on an offer, with the plan that it keeps, or else with the plan of a
    /// new run there.
    #[must_use]
    pub fn on_offer(work: Workload<'_>, facts: JobFacts, kept: Option<&Plan>, offer: &Offer) -> Self {
        let room = offer.margin.room(offer.memory);
        let found = kept.cloned().or_else(|| Some(memory::plan(work, room, offer.threads).ok()?.0));
        let split = found.map_or(BatchSplit { micro_batch_size: 1, checkpointing: true }, |plan| BatchSplit {
            micro_batch_size: plan.micro_batch_size,
            checkpointing: plan.checkpointing,
        });
        Self::of(work, facts, split)
    }

    /// Returns the operations of a job.
    #[must_use]
    pub fn operations(self, tokens: JobTokens) -> f64 {
        self.trained * tokens.trained as f64 + self.validated * tokens.validated as f64
    }
}

/// The mean rows of a file, and the micro-batches that they make.
#[derive(Debug, Clone, Copy)]
struct Rows {
    /// Tokens per row.
    length: f64,
    /// The share of the tokens with a loss.
    with_loss: f64,
    /// Tokens per micro-batch.
    micro_batch: f64,
    /// Tokens per step.
    batch: f64,
}

impl Rows {
    fn of(work: Workload<'_>, facts: FileFacts, split: BatchSplit) -> Self {
        let tokens = facts.tokens.max(1) as f64;
        let length = tokens / facts.rows.max(1) as f64;
        // The rows of the last step of an epoch are left out: there may be fewer than a batch.
        let rows = u64::from(work.train.hyperparameters.batch_size).clamp(1, facts.rows.max(1)) as f64;
        let batch = rows * length;
        let whole = f64::from(split.micro_batch_size.max(1)) * length;
        let most = match work.train.trainer.micro_batch_size {
            Some(_) => whole,
            None => whole.min(MICRO_BATCH_TOKENS.max(work.longest_row) as f64),
        };
        let micro_batch = batch / (batch / most).ceil().max(1.0);
        Self { length, with_loss: facts.trained_tokens as f64 / tokens, micro_batch, batch }
    }
}

/// Returns the operations of a token's forward pass.
fn forward(work: Workload<'_>, rows: Rows) -> f64 {
    let model = work.architecture;
    let weights = model.projection_weights() as f64;
    2.0 * weights
        + attention(model, rows.length)
        + head(model, rows)
        + Adapter::of(work).apart()
        + per_pass(work) / rows.micro_batch
}

/// Returns the operations of a token's backward pass, and of its share of the optimizer step.
fn backward(work: Workload<'_>, rows: Rows, checkpointing: bool) -> f64 {
    let model = work.architecture;
    let passes = if checkpointing { 2.0 } else { 1.0 };
    let recomputed = passes - 1.0;
    let adapter = Adapter::of(work);
    let weights = 2.0 * model.projection_weights() as f64 * passes;
    let attention = attention(model, rows.length) * (ATTENTION_BACKWARD + recomputed);
    let per_micro_batch = per_pass(work) * passes + adapter.gradient_per_micro_batch(work);
    weights
        + attention
        + head(model, rows)
        + adapter.gradient_per_token()
        + adapter.apart() * passes
        + per_micro_batch / rows.micro_batch
        + OPTIMIZER * adapter.factors / rows.batch
}

/// Returns the operations of one pass over all weights of the blocks that do not depend on the number of tokens.
fn per_pass(work: Workload<'_>) -> f64 {
    let adapter = Adapter::of(work);
    let scaled = if adapter.is_dora { DORA_SCALE_PASSES * WEIGHT_PASS * adapter.weights } else { 0.0 };
    let update = if adapter.has_dropout { 0.0 } else { 2.0 * adapter.rank * adapter.weights };
    let is_used_as_it_is = work.train.quantization == Quantization::None && adapter.has_dropout;
    let unpacked = if is_used_as_it_is { 0.0 } else { WEIGHT_PASS * work.architecture.projection_weights() as f64 };
    unpacked + update + scaled
}

/// Returns the operations of a token's attention in the forward pass: two products with each key that it attends to.
fn attention(model: &Architecture, length: f64) -> f64 {
    let per_key = 4.0 * (model.num_attention_heads * model.head_dim) as f64;
    let keys: f64 = (0..model.num_hidden_layers).map(|layer| keys(length, model.layers.window(layer))).sum();
    ATTENTION * per_key * keys
}

/// Returns the mean number of keys that a token of a row attends to.
fn keys(length: f64, window: Option<u64>) -> f64 {
    match window.map(|window| window as f64) {
        Some(window) if window < length => window - window * window / (2.0 * length),
        _ => length / 2.0,
    }
}

/// Returns the operations of a token's logits in one direction; only tokens with a loss have any.
fn head(model: &Architecture, rows: Rows) -> f64 {
    HEAD * 2.0 * (model.vocab_size * model.hidden_size) as f64 * rows.with_loss
}

/// The size of an adapter over all blocks.
#[derive(Debug, Clone, Copy)]
struct Adapter {
    rank: f64,
    /// The weights of the projections that have an adapter.
    weights: f64,
    /// The weights of the factors.
    factors: f64,
    is_dora: bool,
    has_dropout: bool,
}

impl Adapter {
    fn of(work: Workload<'_>) -> Self {
        let (model, spec) = (work.architecture, &work.train.adapter);
        let (mut weights, mut widths) = (0.0, 0.0);
        for (outs, ins) in spec.target_modules.iter().filter_map(|name| model.projection(name)) {
            weights += (outs * ins) as f64;
            widths += (outs + ins) as f64;
        }
        let (layers, rank) = (model.num_hidden_layers as f64, f64::from(spec.rank));
        Self {
            rank,
            weights: weights * layers,
            factors: rank * widths * layers,
            is_dora: spec.use_dora,
            has_dropout: spec.lora_dropout > 0.0,
        }
    }

    /// Returns the operations of the update per token and pass: two thin products with dropout, since the update has
    /// an input of its own then, and none otherwise.
    fn apart(self) -> f64 {
        if self.has_dropout { 2.0 * self.factors } else { 0.0 }
    }

    /// Returns the operations of the gradient per token: four thin products, or with DoRA the gradient of the weight.
    fn gradient_per_token(self) -> f64 {
        if self.is_dora { 2.0 * self.weights } else { 4.0 * self.factors }
    }

    /// Returns the operations of the gradient per micro-batch: none, or with DoRA the updated weight, the passes over
    /// it, and the products of the weight's gradient with both factors.
    fn gradient_per_micro_batch(self, work: Workload<'_>) -> f64 {
        if !self.is_dora {
            return 0.0;
        }
        let unpacked = WEIGHT_PASS * work.architecture.projection_weights() as f64;
        unpacked + (6.0 * self.rank + DORA_GRADIENT_PASSES * WEIGHT_PASS) * self.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        spec::{
            Auto, Requested, TrainSpec,
            request::{AdapterFields, Hyperparameters, QuantizationFields, TrainerFields},
        },
    };

    const SMOLLM2: &str = include_str!("../../testdata/smollm2.json");

    /// A job over rows of one length, every position of which has a loss but the first.
    #[derive(Debug, Clone, Copy)]
    struct Cell {
        length: u64,
        batch: u32,
        micro: u32,
        rank: i64,
        dora: bool,
        dropout: f64,
        quantization: &'static str,
        checkpointing: bool,
    }

    const USUAL: Cell = Cell {
        length: 256,
        batch: 4,
        micro: 4,
        rank: 16,
        dora: false,
        dropout: 0.0,
        quantization: "nf4",
        checkpointing: false,
    };

    fn cost_over(model: &Architecture, cell: Cell) -> TokenCost {
        let asked = Requested {
            hyperparameters: Hyperparameters {
                batch_size: Auto(Some(cell.batch.into())),
                ..Hyperparameters::default()
            },
            adapter: AdapterFields {
                rank: Some(cell.rank),
                use_dora: Some(cell.dora),
                lora_dropout: Some(cell.dropout),
                ..AdapterFields::default()
            },
            quantization: QuantizationFields { r#type: Some(cell.quantization.into()), double_quant: None },
            trainer: TrainerFields {
                micro_batch_size: Some(Auto(Some(cell.micro.into()))),
                ..TrainerFields::default()
            },
            ..Requested::default()
        };
        let train = TrainSpec::check(&asked, 360, 8192).unwrap();
        let (rows, length) = (u64::from(cell.batch), cell.length);
        let facts = FileFacts { rows, tokens: rows * length, trained_tokens: rows * (length - 1), longest_row: length };
        let work = Workload { architecture: model, train: &train, longest_row: length };
        let split = BatchSplit { micro_batch_size: cell.micro, checkpointing: cell.checkpointing };
        TokenCost::of(work, JobFacts { training: facts, validation: Some(facts) }, split)
    }

    fn smollm2() -> Architecture {
        Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap()
    }

    fn cost(cell: Cell) -> TokenCost {
        cost_over(&smollm2(), cell)
    }

    /// Returns the cells of the committed table, with their tokens per second.
    fn table() -> Vec<(Cell, f64)> {
        let lines = include_str!("../../../docs/bench/train.csv").lines().skip(1);
        let cell = |line: &str| {
            let numbers: Vec<f64> = line.split(',').map(|number| number.parse().unwrap()).collect();
            let (length, batch, rank) = (numbers[0] as u64, numbers[1] as u32, numbers[2] as i64);
            (Cell { length, batch, micro: batch, rank, checkpointing: numbers[3] > 0.0, ..USUAL }, numbers[4])
        };
        lines.map(cell).collect()
    }

    #[test]
    fn one_cell_of_the_table_predicts_the_others() {
        let model = smollm2();
        let rates: Vec<f64> = table().into_iter().map(|(cell, rate)| rate * cost_over(&model, cell).trained).collect();
        let usual = cost(USUAL).trained * 562.8456;
        let mut errors: Vec<f64> = rates.iter().map(|rate| (rate / usual - 1.0).abs()).collect();
        errors.sort_by(f64::total_cmp);
        let percentile = |share: f64| errors[(errors.len() as f64 * share) as usize];
        assert!(errors.len() > 60 && percentile(0.5) < 0.05 && percentile(0.95) < 0.12, "{errors:?}");
    }

    #[test]
    fn each_choice_of_a_job_changes_its_cost() {
        let usual = cost(USUAL).trained;
        let dearer = [
            Cell { length: 2048, ..USUAL },
            Cell { rank: 128, ..USUAL },
            Cell { dora: true, ..USUAL },
            Cell { checkpointing: true, ..USUAL },
            Cell { micro: 1, ..USUAL },
            Cell { dropout: 0.1, rank: 128, ..USUAL },
        ];
        for cell in dearer {
            assert!(cost(cell).trained > 1.02 * usual, "{cell:?}: {} and {usual}", cost(cell).trained);
        }
        assert!(cost(Cell { quantization: "none", dropout: 0.1, ..USUAL }).trained < usual, "nothing is unpacked");
        let validated = cost(USUAL).validated / usual;
        assert!((0.3..0.6).contains(&validated), "{validated}");
    }

    #[test]
    fn a_window_bounds_the_keys_of_a_token() {
        assert_eq!((keys(1000.0, None), keys(1000.0, Some(1000)), keys(1000.0, Some(2000))), (500.0, 500.0, 500.0));
        // The first 100 tokens attend to 50 on average, and the other 900 to 100.
        assert_eq!(keys(1000.0, Some(100)), 95.0);
    }

    #[test]
    fn a_job_is_its_tokens_of_both_files() {
        let cost = TokenCost { trained: 3.0, validated: 1.0 };
        assert_eq!(cost.operations(JobTokens { trained: 10, validated: 4 }), 34.0);
    }

    #[test]
    fn a_kept_plan_has_its_own_cost_and_a_new_job_that_of_the_largest_micro_batch() {
        let (model, length) = (smollm2(), 128);
        let train = TrainSpec::check(&Requested::default(), 360, 8192).unwrap();
        let work = Workload { architecture: &model, train: &train, longest_row: length };
        let training = FileFacts { rows: 360, tokens: 360 * length, trained_tokens: 360 * 64, longest_row: length };
        let facts = JobFacts { training, validation: None };
        let offer = Offer::cpu("local", "a", Bytes::mib(100_000), 2);
        let (plan, _) = memory::plan(work, offer.memory, 2).unwrap();
        let kept = Plan { micro_batch_size: 1, checkpointing: true, ..plan.clone() };
        let split =
            |plan: &Plan| BatchSplit { micro_batch_size: plan.micro_batch_size, checkpointing: plan.checkpointing };
        for (given, expected) in [(None, &plan), (Some(&kept), &kept)] {
            assert_eq!(TokenCost::on_offer(work, facts, given, &offer), TokenCost::of(work, facts, split(expected)));
        }
        assert!(TokenCost::of(work, facts, split(&kept)).trained > TokenCost::of(work, facts, split(&plan)).trained);
    }
}
