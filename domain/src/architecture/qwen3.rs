//! Qwen3: norms on q and k, optional biases of attention, a sliding window from a layer on if it is used.
//!
//! Source: `configuration_qwen3.py` and `modeling_qwen3.py` in transformers, 5.23.

use super::{
    ArchitectureError, Family,
    class::{Class, Defaults},
    keys::Keys,
    layer_spec::LayerSpec,
    windows,
};

pub(super) const CLASS: Class = Class {
    family: Family::Qwen3,
    model_type: "qwen3",
    defaults: Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        max_position_embeddings: 32_768,
        num_key_value_heads: Some(32),
        head_dim: Some(128),
    },
    absent_keys: &[("mlp_bias", "false outside the family llama")],
    layers,
};

fn layers(keys: Keys<'_>, count: u64) -> Result<LayerSpec, ArchitectureError> {
    let spec = windows::by_layer(keys, count)?;
    let attention_bias = keys.truth("attention_bias")?.unwrap_or(false);
    Ok(LayerSpec { qkv_bias: attention_bias, o_bias: attention_bias, qk_norm: true, ..spec })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn q_and_k_have_norms_and_all_of_attention_has_biases_or_none() {
        let read = |config: serde_json::Value| Architecture::from_config_json(config.to_string().as_bytes()).unwrap();
        let plain = read(json!({"model_type": "qwen3"}));
        let wanted = LayerSpec { qk_norm: true, ..LayerSpec::default() };
        assert_eq!((plain.head_dim, &plain.layers), (128, &wanted));
        let biased = read(json!({"model_type": "qwen3", "attention_bias": true}));
        assert_eq!(biased.layers, LayerSpec { qkv_bias: true, o_bias: true, ..wanted });
    }
}
