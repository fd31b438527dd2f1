//! Mistral 7B and models of its architecture: no biases, the same sliding window in all layers.
//!
//! Source: `configuration_mistral.py` in transformers, 5.23.

use super::{
    ArchitectureError, Family,
    class::{Class, Defaults},
    keys::Keys,
    layer_spec::LayerSpec,
    windows,
};

pub(super) const CLASS: Class = Class {
    family: Family::Mistral,
    model_type: "mistral",
    defaults: Defaults {
        vocab_size: 32_000,
        intermediate_size: 14_336,
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(8),
        head_dim: None,
    },
    absent_keys: &[("attention_bias", "false in the family mistral"), ("mlp_bias", "false outside the family llama")],
    layers,
};

fn layers(keys: Keys<'_>, count: u64) -> Result<LayerSpec, ArchitectureError> {
    windows::same_in_all(keys, count, windows::sliding_window(keys)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn all_layers_have_the_window_and_biases_are_refused() {
        let read = |config: serde_json::Value| Architecture::from_config_json(config.to_string().as_bytes());
        let plain = read(json!({"model_type": "mistral"})).unwrap();
        assert_eq!(plain.layers, LayerSpec { sliding_window: Some(4096), ..LayerSpec::default() });
        let full = read(json!({"model_type": "mistral", "sliding_window": null})).unwrap();
        assert_eq!(full.layers, LayerSpec::default());
        for (key, allowed) in CLASS.absent_keys {
            read(json!({"model_type": "mistral", *key: false})).unwrap();
            let refused = read(json!({"model_type": "mistral", *key: true})).unwrap_err().to_string();
            assert_eq!(refused, format!("config.json: {key}: true is not supported; allowed: {allowed}"));
        }
    }
}
