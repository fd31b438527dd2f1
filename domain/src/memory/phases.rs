//! The phases of a run, each with its own terms: the load, the training at the points of a step where most is in
//! memory, and the publication. What stays is the same in all of them.
//!
//! In a step, the memory of the logits and of the largest unpacked weight is reserved at the start. Most is in memory
//! at the head, or in the backward pass of the last block: then all that the blocks before it keep still exists.

use crate::{
    bytes::Bytes,
    memory::{
        block::Block,
        sizes::{F32, adapter, base, embeddings, optimizer, per_token},
        work::{BatchSplit, LOSS_CHUNK_ROWS, Workload},
    },
    placement::{ComputeKind, Placement},
    spec::Quantization,
};

/// The terms of a phase: names and bytes.
pub(crate) type Terms = Vec<(&'static str, Bytes)>;

/// The memory of libtorch, its thread pools and the program itself, with the pages of the libraries that a run touches.
/// Fitted on the llama and mistral jobs of `make memory-report`, as the other fitted constants.
const PROCESS: Bytes = Bytes::mib(145);

/// The free memory between the tensors of a step that the allocator cannot use, in percent of the activations. Fitted.
const HOLES_PERCENT: u64 = 10;

/// [`HOLES_PERCENT`] with dropout, where each projection has an input of its own, of its own size. Fitted.
const DROPOUT_HOLES_PERCENT: u64 = 35;

/// The bytes of a weight in a model's files: `f16` or `bf16`, as almost all are.
const IN_FILE: u64 = 2;

/// The tokens of the publish gate's prompts, with a usual tokenizer.
const GATE_TOKENS: u64 = 96;

/// The tensors of the gate's logits that exist at once.
const GATE_LOGITS: u64 = 3;

/// One point of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    /// The activations and their gradients, floats per token.
    activations: u64,
    /// Copies of a weight, in floats: rows of it for the product, or for the norms of DoRA.
    weight: u64,
    /// The buffers of the factors' gradients, in floats.
    gradients: u64,
}

/// Returns the terms of each phase.
pub(crate) fn phases(work: Workload<'_>, placement: Placement, split: BatchSplit) -> Vec<Terms> {
    let kind = placement.compute;
    let mut phases = load(work, kind).to_vec();
    phases.extend(training(work, kind, split));
    phases.extend(publication(work, kind));
    phases
}

/// Returns the terms that every phase has.
fn always(work: Workload<'_>, kind: ComputeKind) -> Terms {
    vec![
        ("process", PROCESS),
        ("base", base(work.architecture, work.train.quantization, kind)),
        ("embeddings", embeddings(work.architecture, kind)),
    ]
}

/// Returns the terms of a load without a cache of quantized weights: while the last matrix of the vocabulary's size is
/// converted from its file, and while the last projection is quantized.
fn load(work: Workload<'_>, kind: ComputeKind) -> [Terms; 2] {
    let (model, quantization) = (work.architecture, work.train.quantization);
    let reading = Bytes(model.vocab_size * model.hidden_size * IN_FILE);
    let first = vec![("process", PROCESS), ("embeddings", embeddings(model, kind)), ("loading", reading)];
    // As it is in its file, and in `f32`; for int8 twice in `f32`, and the codes.
    let bytes = match quantization {
        Quantization::Nf4 { .. } | Quantization::None => IN_FILE + F32,
        Quantization::Int8 => 2 * F32 + 1,
    };
    let mut last = always(work, kind);
    last.push(("loading", Bytes(Block::of(model).largest_projection() * bytes)));
    [first, last]
}

/// Returns the terms of a training at each of its points.
fn training(work: Workload<'_>, kind: ComputeKind, split: BatchSplit) -> Vec<Terms> {
    let (model, train) = (work.architecture, work.train);
    let tokens = work.micro_batch_tokens(split.micro_batch_size).max(work.longest_row);
    let block = Block::of(model);
    let kept_by_one = if split.checkpointing { model.hidden_size } else { block.kept() };
    let kept = per_token(tokens, model.num_hidden_layers.saturating_sub(1) * kept_by_one, kind);
    let floats = |count: u64| Bytes(count.saturating_mul(kind.bytes()));
    let adapter = adapter(model, train);
    let mut stays = always(work, kind);
    stays.extend([
        ("adapter", adapter),
        ("gradients", adapter),
        ("optimizer", optimizer(model, train)),
        ("logits", floats(LOSS_CHUNK_ROWS.min(tokens) * model.vocab_size)),
        ("unpacked weight", floats(block.largest_in_use(train))),
        ("kept activations", kept),
    ]);
    if train.trainer.learning_rate_auto {
        // The adapter and the moments of the range test.
        stays.push(("range test", adapter + optimizer(model, train)));
    }
    let holes = if train.adapter.lora_dropout > 0.0 { DROPOUT_HOLES_PERCENT } else { HOLES_PERCENT };
    let terms = |point: &Point| {
        // The cosine and the sine of each pair of a head's numbers, too.
        let activations = per_token(tokens, point.activations + model.head_dim, kind);
        let (weight, gradients) = (floats(point.weight), Bytes(point.gradients.saturating_mul(F32)));
        let holes = Bytes((kept + activations + weight + gradients).0 / 100 * holes);
        let mut terms = stays.clone();
        terms.extend([
            ("activations", activations),
            ("weight copies", weight),
            ("gradient buffers", gradients),
            ("allocator", holes),
        ]);
        terms
    };
    points(block, work, tokens).iter().map(terms).collect()
}

/// Returns the points of a step where most can be in memory: the head; the feed-forward's backward pass, where the
/// gradient of an input, then those of the factors, are computed for down, then for gate and up; the attention's.
fn points(block: Block, work: Workload<'_>, tokens: u64) -> [Point; 8] {
    let (train, Block { c, f, .. }) = (work.train, block);
    let (gate_up, down) = (block.gate_up(train), block.down(train));
    let feed_forward = block.kept() + c;
    // With dropout, the gradient of a projection's own input and its mask.
    let dropped = if train.adapter.lora_dropout > 0.0 { 2 } else { 0 };
    let at = |activations| Point { activations, ..Point::default() };
    [
        at(block.kept() + 6 * c),
        Point { weight: down.packed(), ..at(feed_forward + f) },
        Point { weight: down.norms(train), ..at(feed_forward) },
        at(feed_forward + (1 + dropped) * f),
        Point { gradients: down.gradients(train, tokens), ..at(feed_forward + f) },
        Point { gradients: gate_up.gradients(train, tokens), ..at(feed_forward + c) },
        Point { weight: gate_up.packed(), ..at(feed_forward + (1 + dropped) * c) },
        at(block.in_attention()),
    ]
}

/// Returns the terms of the publish gate: the trained logits, while the optimizer still exists, and both logits.
fn publication(work: Workload<'_>, kind: ComputeKind) -> [Terms; 2] {
    let (model, train) = (work.architecture, work.train);
    let logits = Bytes(GATE_TOKENS * model.vocab_size * kind.bytes());
    let (mut trained, mut served) = (always(work, kind), always(work, kind));
    trained.extend([("adapter", adapter(model, train)), ("optimizer", optimizer(model, train)), ("logits", logits)]);
    served.extend([("adapter", adapter(model, train)), ("logits", Bytes(GATE_LOGITS * logits.0))]);
    [trained, served]
}
