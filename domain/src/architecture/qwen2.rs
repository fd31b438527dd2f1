//! Qwen2 and Qwen2.5: biases on q, k and v, a sliding window from a layer on if it is used.
//!
//! Source: `configuration_qwen2.py` and `modeling_qwen2.py` in transformers, 5.23.

use super::{
    ArchitectureError, Family,
    class::{Class, Defaults},
    keys::Keys,
    layer_spec::LayerSpec,
    windows,
};

pub(super) const CLASS: Class = Class {
    family: Family::Qwen2,
    model_type: "qwen2",
    defaults: Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        max_position_embeddings: 32_768,
        num_key_value_heads: Some(32),
        head_dim: None,
    },
    absent_keys: &[("mlp_bias", "false outside the family llama")],
    layers,
};

fn layers(keys: Keys<'_>, count: u64) -> Result<LayerSpec, ArchitectureError> {
    let spec = windows::by_layer(keys, count)?;
    // The model's biases do not depend on this key; only its type is checked.
    keys.truth("attention_bias")?;
    Ok(LayerSpec { qkv_bias: true, ..spec })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn q_k_and_v_have_biases_whatever_the_config_sets() {
        let read = |config: serde_json::Value| Architecture::from_config_json(config.to_string().as_bytes());
        let wanted = LayerSpec { qkv_bias: true, ..LayerSpec::default() };
        assert_eq!(read(json!({"model_type": "qwen2"})).unwrap().layers, wanted);
        for bias in [true, false] {
            assert_eq!(read(json!({"model_type": "qwen2", "attention_bias": bias})).unwrap().layers, wanted);
        }
        let refused = read(json!({"model_type": "qwen2", "attention_bias": 1})).unwrap_err().to_string();
        assert_eq!(refused, "config.json: attention_bias: 1 is not supported; allowed: true, false");
    }
}
