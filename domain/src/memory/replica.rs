//! The memory of a replica: a base that is served, with the adapters, keys and values of its requests.

use crate::{
    architecture::Architecture,
    bytes::Bytes,
    memory::{
        estimate::MemoryEstimate,
        sizes::{F32, as_imported, base, embeddings},
        work::PREFILL_TOKENS,
    },
    placement::{Placement, ServedCompute},
    serve::KvCacheDtype,
    spec::Quantization,
};

/// The least memory of a replica for adapters, keys and values: with less, a single long chat would not fit. Half is
/// for adapters, and half for keys and values in `f32`.
const LEAST_BUDGET: Bytes = Bytes::mib(128);

/// The memory of libtorch, its thread pools and the program itself, and what the allocator keeps after the load. It is
/// not fitted: `make memory-report` trains.
pub(crate) const PROCESS: Bytes = Bytes::mib(350);

/// The number of tokens in one step of a replica that an estimate assumes: those of one prompt, and one of each running
/// answer.
const STEP_TOKENS: u64 = 4 * PREFILL_TOKENS;

/// The number of inputs of a served weight that share a scale, where a replica computes from codes.
pub const SERVED_BLOCK: u64 = 64;

/// The models of a replica, and their form in its memory.
#[derive(Debug, Clone, Copy)]
pub struct ServedModels<'a> {
    /// The base.
    pub base: &'a Architecture,
    /// The draft model, in the base's quantization.
    pub draft: Option<&'a Architecture>,
    /// The quantization of the weights.
    pub quantization: Quantization,
    /// The way of computing with them.
    pub compute: ServedCompute,
    /// The number type of keys and values.
    pub kv_cache_dtype: KvCacheDtype,
}

/// The parts of a replica's budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetParts {
    /// For adapters.
    pub adapters: Bytes,
    /// For the base's keys and values.
    pub kv: Bytes,
    /// For the draft's keys and values.
    pub draft_kv: Bytes,
}

impl<'a> ServedModels<'a> {
    /// Returns a base without a draft, with keys and values in `f32`.
    #[must_use]
    pub const fn new(base: &'a Architecture, quantization: Quantization, compute: ServedCompute) -> Self {
        Self { base, draft: None, quantization, compute, kv_cache_dtype: KvCacheDtype::Auto }
    }

    /// Returns the bytes of a token's keys and values: of the base, and of the draft.
    fn kv_bytes(&self) -> (u64, u64) {
        let bytes = |model| self.kv_cache_dtype.bytes_per_token(model).0;
        (bytes(self.base), self.draft.map_or(0, bytes))
    }

    /// Returns the least budget of a replica for adapters, keys and values. Keys and values in 8 bits take less, and
    /// those of a draft are in addition.
    #[must_use]
    pub fn least_budget(&self) -> Bytes {
        let (own, drafts) = self.kv_bytes();
        let half = LEAST_BUDGET.0 / 2;
        let plain = self.base.kv_bytes_per_token().0.max(1);
        Bytes(half + scaled(half, own.saturating_add(drafts), plain))
    }

    /// Divides a budget: neither adapters nor keys and values can starve the other, so no request waits for one that
    /// waits for it. The base and its draft have keys and values of as many tokens, and adapters as much memory as
    /// those of the base would have in `f32`.
    #[must_use]
    pub fn divide(&self, budget: Bytes) -> BudgetParts {
        let (own, drafts) = self.kv_bytes();
        let plain = self.base.kv_bytes_per_token().0;
        let all = plain.saturating_add(own).saturating_add(drafts).max(1);
        let draft_kv = Bytes(scaled(budget.0, drafts, all));
        let kv = Bytes(scaled(budget.0, own, all));
        BudgetParts { adapters: Bytes(budget.0 - draft_kv.0 - kv.0), kv, draft_kv }
    }
}

/// Returns `bytes · part / whole`, without overflow.
fn scaled(bytes: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// The weights of a model in a replica's memory.
struct Weights {
    /// The blocks.
    base: Bytes,
    /// The embedding and the output projection.
    embeddings: Bytes,
    /// The memory that only the load takes.
    loading: Bytes,
}

impl Weights {
    fn of(model: &Architecture, quantization: Quantization, compute: ServedCompute, number: u64) -> Self {
        let dense = embeddings(model, number);
        let whole = base(model, Quantization::None, number);
        let has_codes = quantization != Quantization::None || model.gguf_blocks.is_some();
        let packed = match quantization {
            Quantization::None => as_imported(model, number),
            Quantization::Nf4 { .. } | Quantization::Int8 => base(model, quantization, number),
        };
        let (base, embeddings, loading) = match (quantization, compute) {
            (_, ServedCompute::Packed) if has_codes => {
                (laid_out(model, quantization, number), packed_embeddings(model, number), Bytes(packed.0 + dense.0))
            }
            (Quantization::None, _) => (whole, dense, Bytes(0)),
            (Quantization::Nf4 { .. } | Quantization::Int8, _) => (whole, dense, packed),
        };
        Self { base, embeddings, loading }
    }
}

/// Estimates the peak of a replica whose adapters, keys and values may take `budget`, at the default placement. In
/// `f32` the base is not quantized: quantized weights are dequantized once at startup, and the quantized copy is kept
/// until then. From codes, the quantized copy and the embeddings in `f32` are dropped before the first request, so they
/// count only as far as they exceed what the requests take. A base that is served as it was imported from a GGUF file
/// has the codes of its blocks. A draft is loaded after the base; its steps are between those of the base, and smaller.
#[must_use]
pub fn serving(models: ServedModels<'_>, budget: Bytes) -> MemoryEstimate {
    let ServedModels { base: model, draft, quantization, compute, .. } = models;
    let number = Placement::default().compute.bytes();
    let workspace = Bytes(STEP_TOKENS * workspace_floats(model) * number);
    let logits = Bytes(3 * 16 * model.vocab_size * number);
    let weights = Weights::of(model, quantization, compute, number);
    let draft = draft.map(|draft| Weights::of(draft, quantization, compute, number));
    let loading = weights.loading.max(draft.as_ref().map_or(Bytes(0), |draft| draft.loading));
    let quantized = match compute {
        ServedCompute::F32 => loading,
        ServedCompute::Packed => Bytes(loading.0.saturating_sub(workspace.0 + logits.0 + budget.0)),
    };
    MemoryEstimate::of(&[
        ("process", PROCESS),
        ("base", weights.base),
        ("embeddings", weights.embeddings),
        ("draft model", draft.map_or(Bytes(0), |draft| Bytes(draft.base.0 + draft.embeddings.0))),
        ("workspace", workspace),
        ("logits", logits),
        ("adapters, keys and values", budget),
        ("quantized weights", quantized),
    ])
}

/// Estimates the blocks' projections as the kernels of serving read them: codes, with a scale in `f32` per block of NF4
/// even where they were quantized, and per output of int8. GGUF's blocks take as much as in the file.
fn laid_out(model: &Architecture, quantization: Quantization, number: u64) -> Bytes {
    match quantization {
        Quantization::Nf4 { .. } => base(model, Quantization::Nf4 { double_quant: false }, number),
        Quantization::Int8 => base(model, quantization, number),
        Quantization::None => as_imported(model, number),
    }
}

/// Estimates the embedding and the output projection as they are served: in GGUF's blocks, if the import kept them, or
/// in 8 bits with a scale in `f32` per block, or dense if a row is not whole blocks.
fn packed_embeddings(model: &Architecture, number: u64) -> Bytes {
    let kept = model.gguf_blocks.unwrap_or_default();
    let weights = model.embedding_weights().saturating_sub(kept.embedding_weights);
    let is_whole = model.hidden_size.is_multiple_of(SERVED_BLOCK);
    let others = if is_whole { weights + weights / SERVED_BLOCK * F32 } else { weights * number };
    Bytes(others + kept.embedding_bytes)
}

/// Returns the temporary floats per token of a block.
pub(crate) fn workspace_floats(model: &Architecture) -> u64 {
    let heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim;
    6 * model.hidden_size + 3 * heads + 6 * model.intermediate_size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{architecture::gguf_blocks::BlockKind, weights::kept_blocks};

    const SMOLLM2: &str = include_str!("../../testdata/smollm2.json");

    /// Returns the bytes of a replica's weights.
    fn weights_of(estimate: &MemoryEstimate) -> u64 {
        let weights = estimate.terms.iter().filter(|(name, _)| name == "base" || name == "embeddings");
        weights.map(|(_, bytes)| bytes.0).sum()
    }

    #[test]
    fn a_replica_that_computes_from_codes_is_a_quarter_as_large_as_in_f32() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let models = |quantization, compute| ServedModels::new(&model, quantization, compute);
        let estimate = |quantization, compute| serving(models(quantization, compute), Bytes::mib(512));
        let weights = |quantization, compute| weights_of(&estimate(quantization, compute));
        let dense = weights(Quantization::None, ServedCompute::F32);
        assert_eq!(weights(Quantization::None, ServedCompute::Packed), dense, "there are no codes to compute from");
        let nf4 = Quantization::Nf4 { double_quant: true };
        assert_eq!(weights(nf4, ServedCompute::F32), dense);
        assert!(weights(nf4, ServedCompute::Packed) * 5 < dense, "{}", weights(nf4, ServedCompute::Packed));
        assert!(weights(Quantization::Int8, ServedCompute::Packed) * 19 < dense * 5);
        let peak = |compute| estimate(nf4, compute).peak;
        assert!(peak(ServedCompute::Packed).0 + dense / 2 < peak(ServedCompute::F32).0);
    }

    #[test]
    fn a_replica_of_a_gguf_base_has_the_bits_of_its_blocks() {
        let mut model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let all = model.projection_weights() + model.embedding_weights();
        let weights = |model: &Architecture, compute| {
            weights_of(&serving(ServedModels::new(model, Quantization::None, compute), Bytes::mib(512)))
        };
        for (kind, bits) in BlockKind::ALL.into_iter().zip([4.5, 5.0, 8.5]) {
            model.gguf_blocks = kept_blocks(&model, |_| Some(kind));
            assert_eq!(weights(&model, ServedCompute::Packed) as f64 * 8.0 / all as f64, bits);
            assert_eq!(weights(&model, ServedCompute::F32), all * F32);
        }
        // Only the projections: the embedding is quantized to 8 bits, with a scale per 64.
        model.gguf_blocks = kept_blocks(&model, |name| name.contains("layers").then_some(BlockKind::Q4Zero));
        let mixed = weights(&model, ServedCompute::Packed);
        assert_eq!(mixed, model.projection_weights() * 9 / 16 + model.embedding_weights() * 17 / 16);
    }

    /// With a small budget, the peak is while the base is loaded.
    #[test]
    fn a_replica_needs_the_memory_that_its_start_takes() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let nf4 = Quantization::Nf4 { double_quant: true };
        let estimate = serving(ServedModels::new(&model, nf4, ServedCompute::Packed), Bytes(0));
        let start = model.embedding_weights() * F32 + base(&model, nf4, F32).0;
        assert!(estimate.peak.0 >= PROCESS.0 + start + weights_of(&estimate));
    }

    #[test]
    fn a_draft_adds_its_weights_and_its_keys_and_values() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let draft = Architecture { num_hidden_layers: 3, ..model.clone() };
        let nf4 = Quantization::Nf4 { double_quant: true };
        let alone = ServedModels::new(&model, nf4, ServedCompute::Packed);
        let both = ServedModels { draft: Some(&draft), ..alone };
        let budget = Bytes::mib(512);
        let weights = ServedModels::new(&draft, nf4, ServedCompute::Packed);
        let more = serving(both, budget).peak.0 - serving(alone, budget).peak.0;
        assert_eq!(more, weights_of(&serving(weights, budget)));
        // A tenth of the blocks: a tenth of the keys and values.
        assert_eq!(both.least_budget().0, LEAST_BUDGET.0 + LEAST_BUDGET.0 / 20);
        let parts = both.divide(Bytes(2100));
        assert_eq!(parts, BudgetParts { adapters: Bytes(1000), kv: Bytes(1000), draft_kv: Bytes(100) });
        let parts = alone.divide(Bytes(2100));
        assert_eq!(parts, BudgetParts { adapters: Bytes(1050), kv: Bytes(1050), draft_kv: Bytes(0) });
    }

    #[test]
    fn keys_and_values_in_8_bits_take_a_quarter_with_their_scales() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let plain = ServedModels::new(&model, Quantization::None, ServedCompute::F32);
        let small = ServedModels { kv_cache_dtype: KvCacheDtype::Int8, ..plain };
        assert_eq!(plain.least_budget(), LEAST_BUDGET);
        // 68 bytes for a head of 64 numbers, instead of 256.
        let half = LEAST_BUDGET.0 / 2;
        assert_eq!(small.least_budget().0, half + half * 68 / 256);
        let parts = small.divide(Bytes(324));
        assert_eq!((parts.adapters, parts.kv), (Bytes(256), Bytes(68)));
        let peak = |models: ServedModels<'_>| serving(models, models.least_budget()).peak;
        assert!(peak(small) < peak(plain));
    }
}
