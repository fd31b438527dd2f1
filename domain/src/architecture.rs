//! The architecture of a model, read from a Hugging Face `config.json`: the parameters that memory estimates, the
//! decoder and the import checks all need. Weights are not part of it.

use serde::{Deserialize, Serialize};

use crate::{
    architecture::{gguf_blocks::KeptBlocks, layer_spec::LayerSpec},
    bytes::Bytes,
};

/// The bounds on the numbers of a `config.json`.
pub mod bounds;
mod class;
mod config;
/// Tensors that are kept as the blocks of a GGUF file.
pub mod gguf_blocks;
mod keys;
/// The layers of a decoder.
pub mod layer_spec;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;
mod windows;

/// A family of decoders that Attune runs. One decoder implements all of them: it reads their [`LayerSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1–3, and models of that architecture: SmolLM2, TinyLlama and Code Llama.
    Llama,
    /// Mistral 7B and models of its architecture.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: norms on q and k, no biases.
    Qwen3,
}

/// A scaling of the rotary frequencies, for contexts longer than those of pretraining.
///
/// Source: `_compute_…_parameters` in transformers' `modeling_rope_utils.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Linear scaling: positions are divided by `factor`.
    Linear {
        /// The divisor of positions.
        factor: f64,
    },
    /// Dynamic NTK scaling. It has no effect here: it changes the base of the frequencies only for sequences longer
    /// than `max_position_embeddings`, and no sequence is longer.
    Dynamic {
        /// The scaling factor of longer sequences.
        factor: f64,
    },
    /// YaRN: low frequencies are divided by `factor`, high ones are kept, those between are interpolated by a linear
    /// ramp over the dimensions; cosines and sines are multiplied by `attention_factor`. Source: Peng et al.,
    /// arXiv:2309.00071.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// The multiplier of cosines and sines, computed if the config does not set it.
        attention_factor: f64,
        /// The number of rotations over the original context above which a dimension is kept.
        beta_fast: f64,
        /// The number of rotations over the original context below which a dimension is divided by the full `factor`.
        beta_slow: f64,
        /// `true`: the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
        /// The context length of pretraining.
        original_max_position_embeddings: u64,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones are kept, those between are interpolated.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// The divisor that gives the upper wavelength bound: wavelengths above `original / low_freq_factor` are
        /// divided by the full `factor`.
        low_freq_factor: f64,
        /// The divisor that gives the lower wavelength bound: wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of pretraining.
        original_max_position_embeddings: u64,
    },
}

/// The hyperparameters of a decoder-only transformer. Field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// The decoder family.
    pub family: Family,
    /// The width of the residual stream.
    pub hidden_size: u64,
    /// The width inside the feed-forward block.
    pub intermediate_size: u64,
    /// The number of decoder blocks.
    pub num_hidden_layers: u64,
    /// The number of query heads.
    pub num_attention_heads: u64,
    /// The number of key and value heads; fewer than query heads in grouped-query attention.
    pub num_key_value_heads: u64,
    /// The width of one head.
    pub head_dim: u64,
    /// The number of rows of the embedding table.
    pub vocab_size: u64,
    /// The maximum context length of the model, in tokens.
    pub max_position_embeddings: u64,
    /// The epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// The scaling of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// `true`: `lm_head` shares the embedding table.
    pub tie_word_embeddings: bool,
    /// The weights that are stored as blocks of a GGUF file, as the import found them; `None`: no weights are. A
    /// `config.json` does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gguf_blocks: Option<KeptBlocks>,
    /// The layers. In JSON, their fields are fields of the architecture.
    #[serde(flatten)]
    pub layers: LayerSpec,
}

/// The reason why Attune cannot run a model with this `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureError {
    /// The file is not JSON, or a field has the wrong type.
    #[error("config.json cannot be read: {0}")]
    Unreadable(String),
    /// A required field is missing.
    #[error("config.json has no '{0}'")]
    Missing(String),
    /// A field has an unsupported value.
    #[error("config.json: {field}: {given} is not supported; allowed: {allowed}")]
    Unsupported {
        /// The field's name.
        field: String,
        /// The field's value.
        given: String,
        /// The allowed values.
        allowed: String,
    },
    /// Two names of one setting have different values.
    #[error(
        "config.json: '{first}' is {first_value}, but '{second}' is {second_value}: two names of one setting must have \
         the same value"
    )]
    Disagree {
        /// The first name.
        first: String,
        /// The first name's value.
        first_value: String,
        /// The second name.
        second: String,
        /// The second name's value.
        second_value: String,
    },
}

/// The projections that can have an adapter, in the order of a block.
pub const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Architecture {
    /// Returns the shape `[out, in]` of a projection in [`PROJECTIONS`]; `None` for any other name.
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

    /// Returns the number of weights in the projections of all blocks: those that are quantized.
    #[must_use]
    pub fn projection_weights(&self) -> u64 {
        let block: u64 = PROJECTIONS.iter().filter_map(|name| self.projection(name)).map(|(o, i)| o * i).sum();
        block * self.num_hidden_layers
    }

    /// Returns the number of weights in the embedding table, and in `lm_head` if it is not tied.
    #[must_use]
    pub fn embedding_weights(&self) -> u64 {
        self.vocab_size * self.hidden_size * if self.tie_word_embeddings { 1 } else { 2 }
    }

    /// Returns the bytes of one token's keys and values over all blocks, in f32.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> Bytes {
        Bytes(2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 4)
    }
}

impl Architecture {
    /// Parses a Hugging Face `config.json`, of transformers 4 or 5. Defaults are those of the family's config class.
    ///
    /// # Errors
    /// [`ArchitectureError`]: not JSON, a missing field, an unsupported value, or two names of one setting with
    /// different values.
    pub fn from_config_json(text: &[u8]) -> Result<Self, ArchitectureError> {
        config::read(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = include_str!("../testdata/smollm2.json");

    #[test]
    fn smollm2_has_134_million_weights() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        assert_eq!(model.head_dim, 64);
        assert_eq!(model.rope_theta, 100_000.0);
        let norms = 576 * (2 * 30 + 1);
        assert_eq!(model.projection_weights() + model.embedding_weights() + norms, 134_515_008);
    }

    #[test]
    fn the_stored_form_is_flat_and_read_again() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let stored = r#"{"family":"llama","hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,"#
            .to_owned()
            + r#""num_attention_heads":9,"num_key_value_heads":3,"head_dim":64,"vocab_size":49152,"#
            + r#""max_position_embeddings":8192,"rms_norm_eps":0.00001,"rope_theta":100000.0,"rope_scaling":null,"#
            + r#""tie_word_embeddings":true,"qkv_bias":false,"o_bias":false,"qk_norm":false,"mlp_bias":false,"#
            + r#""sliding_window":null,"full_attention_layers":[]}"#;
        let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
        // As texts, so that the order of the keys counts.
        assert_eq!(serde_json::to_value(&model).unwrap().to_string(), stored.to_string());
        assert_eq!(serde_json::from_value::<Architecture>(stored).unwrap(), model);
        // Rows from before these two fields.
        let config = SMOLLM2.replace("llama", "qwen3");
        let model = Architecture::from_config_json(config.as_bytes()).unwrap();
        let mut older = serde_json::to_value(&model).unwrap();
        for added in ["mlp_bias", "full_attention_layers"] {
            older.as_object_mut().unwrap().remove(added).unwrap();
        }
        assert_eq!(serde_json::from_value::<Architecture>(older).unwrap(), model);
    }

    #[test]
    fn what_is_not_supported_is_named_with_what_is() {
        let text = SMOLLM2.replace("\"llama\"", "\"gpt2\"");
        let refused = Architecture::from_config_json(text.as_bytes()).unwrap_err().to_string();
        assert!(refused.starts_with("config.json: model_type: gpt2 is not supported; allowed: llama, "), "{refused}");
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
