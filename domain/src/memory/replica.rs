//! The memory of a replica: a base that is served, with the adapters, keys and values of its requests.

use crate::{
    architecture::Architecture,
    bytes::Bytes,
    memory::{
        estimate::MemoryEstimate,
        sizes::{base, embeddings},
        work::PREFILL_TOKENS,
    },
    placement::Placement,
    spec::Quantization,
};

/// The memory of libtorch, its thread pools and the program itself, and what the allocator keeps after the load. It is
/// not fitted: `make memory-report` trains.
const PROCESS: Bytes = Bytes::mib(350);

/// The number of tokens in one step of a replica that an estimate assumes: those of one prompt, and one of each running
/// answer.
const STEP_TOKENS: u64 = 4 * PREFILL_TOKENS;

/// Estimates the peak of a replica whose adapters, keys and values may take `budget`, at the default placement. The
/// base is not quantized: quantized weights are dequantized once at startup, and the quantized copy is kept until then.
#[must_use]
pub fn serving(model: &Architecture, quantization: Quantization, budget: Bytes) -> MemoryEstimate {
    let number = Placement::default().compute.bytes();
    let quantized = match quantization {
        Quantization::None => Bytes(0),
        Quantization::Int8 | Quantization::Nf4 { .. } => base(model, quantization, number),
    };
    MemoryEstimate::of(&[
        ("process", PROCESS),
        ("base", base(model, Quantization::None, number)),
        ("embeddings", embeddings(model, number)),
        ("workspace", Bytes(STEP_TOKENS * workspace_floats(model) * number)),
        ("logits", Bytes(3 * 16 * model.vocab_size * number)),
        ("adapters, keys and values", budget),
        ("quantized weights", quantized),
    ])
}

/// Returns the temporary floats per token of a block.
fn workspace_floats(model: &Architecture) -> u64 {
    let heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim;
    6 * model.hidden_size + 3 * heads + 6 * model.intermediate_size
}
