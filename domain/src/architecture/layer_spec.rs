//! The layers of a decoder, as far as families differ in them.

use serde::{Deserialize, Serialize};

/// The parts of a decoder's layers that differ between families; each family's file derives them from a `config.json`.
/// The other parts are the same everywhere: an RMSNorm before attention and one before the feed-forward, rotary
/// embeddings over the whole head, and a feed-forward gated by SiLU.
///
/// The default is a layer without biases, without norms on q and k, with full attention.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// `true`: q, k and v have biases.
    pub qkv_bias: bool,
    /// `true`: `o_proj` has a bias.
    pub o_bias: bool,
    /// `true`: q and k are normalized per head.
    pub qk_norm: bool,
    /// `true`: the gate, up and down projections have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// The number of positions that a query attends to at most; `None`: all.
    pub sliding_window: Option<u64>,
    /// The layers with full attention in a model with a sliding window, ascending.
    #[serde(default)]
    pub full_attention_layers: Vec<u64>,
}

impl LayerSpec {
    /// Returns the attention window of a layer; `None`: full attention.
    #[must_use]
    pub fn window(&self, layer: u64) -> Option<u64> {
        self.sliding_window.filter(|_| !self.full_attention_layers.contains(&layer))
    }

    /// Returns whether a projection has a bias.
    #[must_use]
    pub fn has_bias(&self, projection: &str) -> bool {
        match projection {
            "q_proj" | "k_proj" | "v_proj" => self.qkv_bias,
            "o_proj" => self.o_bias,
            _ => self.mlp_bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_that_of_the_layers_without_full_attention() {
        let full = LayerSpec::default();
        assert_eq!((full.window(0), full.window(1)), (None, None));
        let mixed = LayerSpec { sliding_window: Some(8), full_attention_layers: vec![1], ..full };
        assert_eq!((mixed.window(0), mixed.window(1), mixed.window(2)), (Some(8), None, Some(8)));
    }

    #[test]
    fn a_row_without_the_fields_that_were_added_later_is_read() {
        let row = r#"{"qkv_bias": true, "o_bias": false, "qk_norm": false, "sliding_window": null}"#;
        let spec: LayerSpec = serde_json::from_str(row).unwrap();
        assert_eq!(spec, LayerSpec { qkv_bias: true, ..LayerSpec::default() });
    }
}
