//! The number types of a model's tensors: the mixture of types that llama.cpp names after the type of most of them.
//!
//! Source: `llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's `llama-quant.cpp`, for
//! `LLAMA_FTYPE_MOSTLY_Q4_K_M` and the architectures that an export can have. Its rule for models of 70 billion weights
//! is left out: such a file is larger than an export may be.

use crate::export::interface::Matrices;
use crate::export::kind::Kind;

/// The facts about a model that decide the types of its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixture {
    pub(crate) matrices: Matrices,
    /// The number of layers.
    pub(crate) layers: u64,
    /// `true`: the output matrix is the embedding table.
    pub(crate) is_tied: bool,
}

impl Mixture {
    /// Returns the type of the tensor with this name in GGUF and this shape.
    pub(crate) fn kind(self, gguf: &str, shape: &[u64]) -> Kind {
        let &[_, columns] = shape else { return Kind::F32 };
        let kind = match self.matrices {
            Matrices::F32 => Kind::F32,
            Matrices::F16 => Kind::F16,
            Matrices::Q8Zero => Kind::Q8Zero,
            Matrices::Q4KMedium if self.is_precise(gguf) => Kind::Q6K,
            Matrices::Q4KMedium => Kind::Q4K,
        };
        fitting(kind, columns)
    }

    /// Returns whether a tensor of the mixture has more bits than most.
    fn is_precise(self, gguf: &str) -> bool {
        match gguf {
            "output.weight" => true,
            "token_embd.weight" => self.is_tied,
            _ => sensitive_layer(gguf).is_some_and(|layer| uses_more_bits(layer, self.layers)),
        }
    }
}

/// Returns the layer of a tensor of the kinds that have more bits in some layers.
fn sensitive_layer(gguf: &str) -> Option<u64> {
    let (layer, name) = gguf.strip_prefix("blk.")?.split_once('.')?;
    matches!(name, "attn_v.weight" | "ffn_down.weight").then(|| layer.parse().ok()).flatten()
}

/// Returns whether a layer has more bits: the first and the last eighth, and each third layer between them.
const fn uses_more_bits(layer: u64, layers: u64) -> bool {
    let first = layers / 8;
    layer < first || layer >= 7 * layers / 8 || (layer - first) % 3 == 2
}

/// Returns the type, or for rows that are not whole blocks of it the one that llama.cpp takes instead.
const fn fitting(kind: Kind, columns: u64) -> Kind {
    let other = match kind {
        _ if kind.fits(columns) => return kind,
        Kind::Q4K => Kind::Q5Zero,
        Kind::Q6K => Kind::Q8Zero,
        Kind::F32 | Kind::F16 | Kind::Q5Zero | Kind::Q8Zero => Kind::F16,
    };
    if other.fits(columns) { other } else { Kind::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(layers: u64, is_tied: bool) -> Mixture {
        Mixture { matrices: Matrices::Q4KMedium, layers, is_tied }
    }

    #[test]
    fn a_model_of_30_layers_has_llama_cpps_mixture() {
        let mixture = mixture(30, true);
        let precise: Vec<u64> = (0..30)
            .filter(|layer| mixture.kind(&format!("blk.{layer}.ffn_down.weight"), &[512, 1536]) == Kind::Q6K)
            .collect();
        // 30 / 8 = 3 and 7 · 30 / 8 = 26.
        assert_eq!(precise, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        for layer in 0..30 {
            let kind = |name: &str, columns| mixture.kind(&format!("blk.{layer}.{name}.weight"), &[512, columns]);
            assert_eq!(kind("attn_v", 512), kind("ffn_down", 1536), "{layer}");
            for name in ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"] {
                assert_eq!(kind(name, 512), Kind::Q4K, "{layer} {name}");
            }
            assert_eq!(mixture.kind(&format!("blk.{layer}.attn_norm.weight"), &[512]), Kind::F32);
        }
    }

    #[test]
    fn the_output_matrix_has_more_bits_also_where_it_is_the_embedding_table() {
        let kind = |is_tied, name: &str| mixture(2, is_tied).kind(name, &[1000, 512]);
        assert_eq!((kind(false, "output.weight"), kind(false, "token_embd.weight")), (Kind::Q6K, Kind::Q4K));
        assert_eq!(kind(true, "token_embd.weight"), Kind::Q6K);
    }

    #[test]
    fn rows_that_are_not_whole_blocks_have_a_type_with_smaller_ones() {
        let mixture = mixture(30, true);
        // SmolLM2-135M: rows of 576 numbers.
        assert_eq!(mixture.kind("blk.0.attn_q.weight", &[576, 576]), Kind::Q5Zero);
        assert_eq!(mixture.kind("blk.0.attn_v.weight", &[192, 576]), Kind::Q8Zero);
        assert_eq!(mixture.kind("token_embd.weight", &[49152, 576]), Kind::Q8Zero);
        assert_eq!(mixture.kind("blk.3.attn_q.weight", &[8, 40]), Kind::F16);
        let eight = Mixture { matrices: Matrices::Q8Zero, ..mixture };
        assert_eq!(
            (eight.kind("output.weight", &[8, 64]), eight.kind("output.weight", &[8, 40])),
            (Kind::Q8Zero, Kind::F16)
        );
    }
}
