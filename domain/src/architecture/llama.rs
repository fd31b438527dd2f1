//! Llama 1–3: optional biases on all projections, full attention.
//!
//! Source: `configuration_llama.py` in transformers, 5.23.

use super::{
    ArchitectureError, Family,
    class::{Class, Defaults},
    keys::Keys,
    layer_spec::LayerSpec,
    windows,
};

pub(super) const CLASS: Class = Class {
    family: Family::Llama,
    model_type: "llama",
    defaults: Defaults {
        vocab_size: 32_000,
        intermediate_size: 11_008,
        max_position_embeddings: 2048,
        num_key_value_heads: None,
        head_dim: None,
    },
    absent_keys: &[],
    layers,
};

fn layers(keys: Keys<'_>, count: u64) -> Result<LayerSpec, ArchitectureError> {
    let spec = windows::same_in_all(keys, count, None)?;
    let attention_bias = keys.truth("attention_bias")?.unwrap_or(false);
    let mlp_bias = keys.truth("mlp_bias")?.unwrap_or(false);
    Ok(LayerSpec { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..spec })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn biases_are_those_that_the_config_sets_and_a_window_has_no_effect() {
        let read = |config: serde_json::Value| Architecture::from_config_json(config.to_string().as_bytes());
        let plain = read(json!({"model_type": "llama", "sliding_window": 8, "use_sliding_window": true})).unwrap();
        assert_eq!(plain.layers, LayerSpec::default());
        let biased = read(json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true})).unwrap();
        let all = LayerSpec { qkv_bias: true, o_bias: true, mlp_bias: true, ..LayerSpec::default() };
        assert_eq!(biased.layers, all);
        let refused = read(json!({"model_type": "llama", "mlp_bias": "yes"})).unwrap_err().to_string();
        assert_eq!(refused, "config.json: mlp_bias: yes is not supported; allowed: true, false");
    }
}
