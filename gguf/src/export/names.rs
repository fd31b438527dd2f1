//! llama.cpp's names of architectures, and its order of rows.

use attune_domain::architecture::{Architecture, Family};

/// Returns llama.cpp's name of the architecture. It has none for Mistral, whose computation is Llama's.
pub(crate) const fn arch(architecture: &Architecture) -> &'static str {
    match architecture.family {
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    }
}

/// Returns whether llama.cpp permutes the rows of a tensor, for its own rotary embedding.
pub(crate) fn is_permuted(architecture: &Architecture, name: &str) -> bool {
    arch(architecture) == "llama" && (name.contains(".q_proj.") || name.contains(".k_proj."))
}
