//! What a model is made of, read from a Hugging Face `config.json`: the numbers that memory arithmetic, the decoder
//! and the import checks all need. No weights here.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// The bounds on the numbers of a `config.json`.
pub mod bounds;
mod config;
mod keys;
mod rope;

/// A family of decoders that Attune runs. One decoder serves them all; the flags on [`Architecture`] tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1–3, and so SmolLM2, TinyLlama and Code Llama.
    Llama,
    /// Mistral 7B and its kin.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: norms on q and k, no biases.
    Qwen3,
}

/// A scaling of the rotary frequencies, for contexts longer than those of the first training.
///
/// Source: `_compute_…_parameters` in transformers' `modeling_rope_utils.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Nothing up to `max_position_embeddings`, and no sequence here is longer: the base of the frequencies would grow
    /// with the length beyond it.
    Dynamic {
        /// By how much longer sequences would be stretched.
        factor: f64,
    },
    /// YaRN: low frequencies divided by `factor`, high ones kept, those between blended by a ramp over the dimensions;
    /// cosines and sines multiplied by `attention_factor`. Source: Peng et al., arXiv:2309.00071.
    Yarn {
        /// By how much the low frequencies are divided.
        factor: f64,
        /// The multiplier of cosines and sines, worked out if the config does not give it.
        attention_factor: f64,
        /// Dimensions with more rotations over the original context than this are kept.
        beta_fast: f64,
        /// Dimensions with fewer rotations over the original context than this are divided whole.
        beta_slow: f64,
        /// The ends of the ramp are whole dimensions.
        truncate: bool,
        /// The context length that the model was first trained with.
        original_max_position_embeddings: u64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// By how much the low frequencies are divided.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided whole.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length that the model was first trained with.
        original_max_position_embeddings: u64,
    },
}

/// The shape of a decoder-only transformer. Field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Which family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Width inside the feed-forward block.
    pub intermediate_size: u64,
    /// Decoder blocks.
    pub num_hidden_layers: u64,
    /// Query heads.
    pub num_attention_heads: u64,
    /// Key and value heads; fewer than query heads in grouped-query attention.
    pub num_key_value_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Rows of the embedding table.
    pub vocab_size: u64,
    /// The longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: u64,
    /// The small number inside RMSNorm's root.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched, if at all.
    pub rope_scaling: Option<RopeScaling>,
    /// `lm_head` is the embedding table.
    pub tie_word_embeddings: bool,
    /// q, k and v have biases (Qwen2, or `attention_bias`).
    pub qkv_bias: bool,
    /// `o_proj` has a bias (`attention_bias` on Llama).
    pub o_bias: bool,
    /// q and k are normed per head (Qwen3).
    pub qk_norm: bool,
    /// The gate, up and down projections have biases (`mlp_bias` on Llama).
    #[serde(default)]
    pub mlp_bias: bool,
    /// A query sees at most this many positions back; `None`: all.
    pub sliding_window: Option<u64>,
    /// Layers whose queries see all positions although there is a window, ascending.
    #[serde(default)]
    pub full_attention_layers: Vec<u64>,
}

/// Why a `config.json` is not one that Attune can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureError {
    /// Not JSON, or a field of the wrong kind.
    #[error("config.json cannot be read: {0}")]
    Unreadable(String),
    /// A field that must be there is not.
    #[error("config.json has no '{0}'")]
    Missing(String),
    /// A field has a value that Attune does not run.
    #[error("config.json: {field}: {given} is not supported; allowed: {allowed}")]
    Unsupported {
        /// The field.
        field: String,
        /// The given value.
        given: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// Two names of one setting have different values.
    #[error(
        "config.json: '{first}' is {first_value}, but '{second}' is {second_value}: two names of one setting must have \
         the same value"
    )]
    Disagree {
        /// One name.
        first: String,
        /// The value under it.
        first_value: String,
        /// The other name.
        second: String,
        /// The value under it.
        second_value: String,
    },
}

/// The projections that can take an adapter, in the order of a block.
pub const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Architecture {
    /// `[out, in]` of a projection of [`PROJECTIONS`]; `None` for any other name.
    #[must_use]
    pub fn projection(&self, name: &str) -> Option<(u64, u64)> {
        let query = self.num_attention_heads * self.head_dim;
        let key = self.num_key_value_heads * self.head_dim;
        Some(match name {
            "q_proj" => (query, self.hidden_size),
            "k_proj" | "v_proj" => (key, self.hidden_size),
            "o_proj" => (self.hidden_size, query),
            "gate_proj" | "up_proj" => (self.intermediate_size, self.hidden_size),
            "down_proj" => (self.hidden_size, self.intermediate_size),
            _ => return None,
        })
    }

    /// Weights in the projections of all blocks: what is quantised.
    #[must_use]
    pub fn projection_weights(&self) -> u64 {
        let block: u64 = PROJECTIONS.iter().filter_map(|name| self.projection(name)).map(|(o, i)| o * i).sum();
        block * self.num_hidden_layers
    }

    /// Weights in the embedding table, and in `lm_head` if that is its own.
    #[must_use]
    pub fn embedding_weights(&self) -> u64 {
        self.vocab_size * self.hidden_size * if self.tie_word_embeddings { 1 } else { 2 }
    }

    /// The window of a layer; `None`: it sees everything.
    #[must_use]
    pub fn window(&self, layer: u64) -> Option<u64> {
        self.sliding_window.filter(|_| !self.full_attention_layers.contains(&layer))
    }

    /// Bytes of one token's keys and values over all blocks, in f32.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> Bytes {
        Bytes(2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 4)
    }
}

impl Architecture {
    /// Reads a Hugging Face `config.json`, of transformers 4 or 5. Defaults are those of the family's own config class.
    ///
    /// # Errors
    /// [`ArchitectureError`]: not JSON, a missing field, a value that Attune does not run, or two names of one setting
    /// that disagree.
    pub fn from_config_json(text: &[u8]) -> Result<Self, ArchitectureError> {
        config::read(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05, "tie_word_embeddings": true, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}"#;

    #[test]
    fn smollm2_has_134_million_weights() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        assert_eq!(model.head_dim, 64);
        assert_eq!(model.rope_theta, 100_000.0);
        let norms = 576 * (2 * 30 + 1);
        assert_eq!(model.projection_weights() + model.embedding_weights() + norms, 134_515_008);
    }

    #[test]
    fn what_is_not_supported_is_named_with_what_is() {
        let text = SMOLLM2.replace("\"llama\"", "\"gpt2\"");
        let refused = Architecture::from_config_json(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused, "config.json: model_type: gpt2 is not supported; allowed: llama, mistral, qwen2, qwen3");
    }

    #[test]
    fn llama_3_scaling_is_read_from_the_older_field() {
        let text = SMOLLM2.replace(
            r#""rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}"#,
            r#""rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#,
        );
        let model = Architecture::from_config_json(text.as_bytes()).unwrap();
        assert_eq!(model.rope_theta, 500_000.0);
        assert!(matches!(model.rope_scaling, Some(RopeScaling::Llama3 { factor: 8.0, .. })));
    }
}
