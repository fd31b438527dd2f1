//! The phases of a run, each with its own terms: the load, the training at the points of a step where most is in
//! memory, and the publication. What stays is the same in all of them. The phases are those of the memory in which the
//! device computes; `cuda.rs` has the host's phases for a CUDA device.
//!
//! In a step, the memory of the logits and of the largest unpacked weight is reserved at the start. Most is in memory
//! at the head, or in the backward pass of the last block: then all that the blocks before it keep still exists.

use crate::{
    architecture::Architecture,
    bytes::Bytes,
    memory::{
        allocator,
        block::Block,
        device::Device,
        estimate::Terms,
        gate::GATE_TOKENS,
        sizes::{F32, adapter, base, embeddings, optimizer, per_token},
        work::{BatchSplit, LOSS_CHUNK_ROWS, Workload},
    },
    spec::Quantization,
};

/// The free memory between the tensors of a step that the allocator cannot use, in percent of the activations. Fitted
/// on the CPU; assumed for CUDA.
const HOLES_PERCENT: u64 = 10;

/// [`HOLES_PERCENT`] with dropout, where each projection has an input of its own, of its own size. Fitted.
const DROPOUT_HOLES_PERCENT: u64 = 35;

/// The bytes of a weight in a model's files: `f16` or `bf16`, as almost all are.
pub(crate) const IN_FILE: u64 = 2;

/// The tensors of the gate's logits that exist at once.
const GATE_LOGITS: u64 = 3;

/// One point of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    /// The activations and their gradients, numbers per token.
    activations: u64,
    /// Copies of a weight, in numbers: rows of it for the product, or for the norms of DoRA.
    weight: u64,
    /// The buffers of the factors' gradients, in values of `f32`.
    gradients: u64,
}

/// Returns the terms of each phase in the device's memory.
pub(crate) fn phases(work: Workload<'_>, device: Device, split: BatchSplit) -> Vec<Terms> {
    let mut phases = match device {
        Device::Cpu(_) => load(work, device).to_vec(),
        // The host converts and quantizes; the device receives what stays.
        Device::Cuda => Vec::new(),
    };
    phases.extend(training(work, device, split));
    phases.extend(publication(work, device));
    phases
}

/// Returns the terms that every phase has.
fn always(work: Workload<'_>, device: Device) -> Terms {
    let (model, quantization) = (work.architecture, work.train.quantization);
    let mut terms = device.floor();
    terms.push((device.base_name(quantization), base(model, quantization, device.bytes())));
    terms.push(("embeddings", embeddings(model, device.bytes())));
    terms
}

/// Returns the terms of a load without a cache of quantized weights: while the last matrix of the vocabulary's size is
/// converted from its file, and while the last projection is quantized.
fn load(work: Workload<'_>, device: Device) -> [Terms; 2] {
    let (model, quantization) = (work.architecture, work.train.quantization);
    let reading = Bytes(model.vocab_size * model.hidden_size * IN_FILE);
    let mut first = device.floor();
    first.extend([("embeddings", embeddings(model, device.bytes())), ("loading", reading)]);
    let mut last = always(work, device);
    last.push(("loading", quantizing(model, quantization)));
    [first, last]
}

/// Returns the bytes while the largest projection is quantized: as it is in its file, and in `f32`; for int8 twice in
/// `f32`, and the codes.
pub(crate) fn quantizing(model: &Architecture, quantization: Quantization) -> Bytes {
    let bytes = match quantization {
        Quantization::Nf4 { .. } | Quantization::None => IN_FILE + F32,
        Quantization::Int8 => 2 * F32 + 1,
    };
    Bytes(Block::of(model).largest_projection() * bytes)
}

/// Returns the terms of a training at each of its points.
fn training(work: Workload<'_>, device: Device, split: BatchSplit) -> Vec<Terms> {
    let (model, train, number) = (work.architecture, work.train, device.bytes());
    let tokens = work.micro_batch_tokens(split.micro_batch_size).max(work.longest_row);
    let block = Block::of(model);
    let kept_by_one = if split.checkpointing { model.hidden_size } else { block.kept(device) };
    let kept = per_token(tokens, model.num_hidden_layers.saturating_sub(1) * kept_by_one, number);
    let numbers = |count: u64| Bytes(count.saturating_mul(number));
    let adapter = adapter(model, train);
    let mut stays = always(work, device);
    stays.extend([
        ("adapter", adapter),
        ("gradients", adapter),
        ("optimizer", optimizer(model, train)),
        ("logits", Bytes((LOSS_CHUNK_ROWS.min(tokens) * model.vocab_size).saturating_mul(device.logit_bytes()))),
        ("unpacked weight", numbers(block.largest_in_use(train))),
        ("kept activations", kept),
    ]);
    if train.trainer.learning_rate_auto {
        // The adapter and the moments of the range test.
        stays.push(("range test", adapter + optimizer(model, train)));
    }
    let holes = if train.adapter.lora_dropout > 0.0 { DROPOUT_HOLES_PERCENT } else { HOLES_PERCENT };
    // CUDA's allocator rounds what stays; on the CPU, holes are between what is kept, too.
    let (rounding, among) = match device {
        Device::Cpu(_) => (Bytes(0), kept),
        Device::Cuda => (allocator::rounding(work, tokens, split), Bytes(0)),
    };
    let terms = |point: &Point| {
        // The cosine and the sine of each pair of a head's numbers, too.
        let activations = per_token(tokens, point.activations + model.head_dim, number);
        let (weight, gradients) = (numbers(point.weight), Bytes(point.gradients.saturating_mul(F32)));
        let holes = Bytes((among + activations + weight + gradients).0 / 100 * holes);
        let mut terms = stays.clone();
        terms.extend([
            ("activations", activations),
            ("weight copies", weight),
            ("gradient buffers", gradients),
            ("allocator", rounding + holes),
        ]);
        terms
    };
    points(device, work, tokens).iter().map(terms).collect()
}

/// Returns the points of a step where most can be in memory: the head; the feed-forward's backward pass, where the
/// gradient of an input, then those of the factors, are computed for down, then for gate and up; the attention's.
fn points(device: Device, work: Workload<'_>, tokens: u64) -> [Point; 8] {
    let block = Block::of(work.architecture);
    let (train, Block { c, f, .. }) = (work.train, block);
    let (gate_up, down) = (block.gate_up(train), block.down(train));
    let feed_forward = block.kept(device) + c;
    // With dropout, the gradient of a projection's own input and its mask.
    let dropped = if train.adapter.lora_dropout > 0.0 { 2 } else { 0 };
    let at = |activations| Point { activations, ..Point::default() };
    [
        at(block.kept(device) + 6 * c),
        Point { weight: down.packed(device), ..at(feed_forward + f) },
        Point { weight: down.norms(train, device), ..at(feed_forward) },
        at(feed_forward + (1 + dropped) * f),
        Point { gradients: down.gradients(train, tokens), ..at(feed_forward + f) },
        Point { gradients: gate_up.gradients(train, tokens), ..at(feed_forward + c) },
        Point { weight: gate_up.packed(device), ..at(feed_forward + (1 + dropped) * c) },
        at(block.in_attention(device)),
    ]
}

/// Returns the terms of the publish gate: the trained logits, while the optimizer still exists, and both logits.
fn publication(work: Workload<'_>, device: Device) -> [Terms; 2] {
    let (model, train) = (work.architecture, work.train);
    let logits = Bytes(GATE_TOKENS * model.vocab_size * device.logit_bytes());
    let (mut trained, mut served) = (always(work, device), always(work, device));
    trained.extend([("adapter", adapter(model, train)), ("optimizer", optimizer(model, train)), ("logits", logits)]);
    served.extend([("adapter", adapter(model, train)), ("logits", Bytes(GATE_LOGITS * logits.0))]);
    [trained, served]
}
