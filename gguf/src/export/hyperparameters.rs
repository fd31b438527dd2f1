//! The keys of a model's hyperparameters.
//!
//! Source: `set_gguf_parameters` of `TextModel`, `LlamaModel` and `Qwen2Model` in llama.cpp's `convert_hf_to_gguf.py`,
//! and `generate_extra_tensors` for Llama 3's factors.

use attune_domain::architecture::{Architecture, RopeScaling};

use crate::export::error::ExportError;
use crate::export::metadata::Metadata;
use crate::rope::llama3_factor;

/// The largest difference between a YaRN attention factor and the one that llama.cpp computes.
const FACTOR_TOLERANCE: f64 = 1e-6;

/// Sets all keys. Returns the divisors of Llama 3's frequencies, which are a tensor of the file.
pub(crate) fn set(metadata: &mut Metadata, arch: &str, model: &Architecture) -> Result<Option<Vec<f32>>, ExportError> {
    if model.layers.sliding_window.is_some() {
        return Err(ExportError::Unsupported("llama.cpp has no sliding window for models of this architecture".into()));
    }
    for (name, value) in [
        ("block_count", model.num_hidden_layers),
        ("context_length", model.max_position_embeddings),
        ("embedding_length", model.hidden_size),
        ("feed_forward_length", model.intermediate_size),
        ("attention.head_count", model.num_attention_heads),
        ("attention.head_count_kv", model.num_key_value_heads),
        ("attention.key_length", model.head_dim),
        ("attention.value_length", model.head_dim),
        ("rope.dimension_count", model.head_dim),
        ("vocab_size", model.vocab_size),
    ] {
        metadata.number(&format!("{arch}.{name}"), small(name, value)?);
    }
    metadata.real(&format!("{arch}.attention.layer_norm_rms_epsilon"), model.rms_norm_eps as f32);
    metadata.real(&format!("{arch}.rope.freq_base"), model.rope_theta as f32);
    match &model.rope_scaling {
        None => Ok(None),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            let terms = [*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings as f64];
            let count = usize::try_from(model.head_dim / 2).unwrap_or(0);
            let divisor = |i| llama3_factor(i, model.rope_theta, model.head_dim, terms) as f32;
            Ok(Some((0..count).map(divisor).collect()))
        }
        Some(RopeScaling::Linear { factor }) => {
            metadata.text(&format!("{arch}.rope.scaling.type"), "linear");
            metadata.real(&format!("{arch}.rope.scaling.factor"), *factor as f32);
            Ok(None)
        }
        Some(yarn @ RopeScaling::Yarn { .. }) => set_yarn(metadata, arch, yarn).map(|()| None),
        Some(RopeScaling::Dynamic { .. }) => {
            Err(ExportError::Unsupported("GGUF has no dynamic scaling of rotary embeddings".into()))
        }
    }
}

/// Sets YaRN's keys. llama.cpp computes the attention factor itself and rounds the ends of the ramp.
fn set_yarn(metadata: &mut Metadata, arch: &str, scaling: &RopeScaling) -> Result<(), ExportError> {
    let RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate,
        original_max_position_embeddings,
    } = scaling
    else {
        return Ok(());
    };
    let computed = 0.1 * factor.ln() + 1.0;
    if !truncate || (attention_factor - computed).abs() > FACTOR_TOLERANCE {
        let why = "GGUF has no form for a YaRN scaling with its own attention_factor or without truncation";
        return Err(ExportError::Unsupported(why.into()));
    }
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    metadata.text(&key("type"), "yarn");
    metadata.real(&key("factor"), *factor as f32);
    let original = small("original_context_length", *original_max_position_embeddings)?;
    metadata.number(&key("original_context_length"), original);
    metadata.real(&key("yarn_beta_fast"), *beta_fast as f32);
    metadata.real(&key("yarn_beta_slow"), *beta_slow as f32);
    Ok(())
}

fn small(name: &str, value: u64) -> Result<u32, ExportError> {
    u32::try_from(value).map_err(|_| ExportError::Unsupported(format!("{name} {value} is too large for GGUF")))
}
