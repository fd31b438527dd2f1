//! What a model is made of, read from a Hugging Face `config.json`: the numbers that memory arithmetic, the decoder
//! and the import checks all need. No weights here.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

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

/// Llama 3's stretch of the rotary frequencies.
///
/// Source: `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear {
        /// By how much.
        factor: f64,
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
    /// A query sees at most this many positions back; `None`: all.
    pub sliding_window: Option<u64>,
}

/// Why a `config.json` is not one that Attune can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureError {
    /// Not JSON, or a field of the wrong kind.
    #[error("config.json cannot be read: {0}")]
    Unreadable(String),
    /// A field that must be there is not.
    #[error("config.json has no '{0}'")]
    Missing(&'static str),
    /// A field has a value that Attune does not run.
    #[error("config.json: {field}: {given} is not supported; allowed: {allowed}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        given: String,
        /// What it may be.
        allowed: &'static str,
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

    /// Bytes of one token's keys and values over all blocks, in f32.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> Bytes {
        Bytes(2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 4)
    }
}

/// `config.json` as it lies on disk; only what is needed is named, since families add fields of their own.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
}

/// `rope_scaling` of transformers 4, or `rope_parameters` of transformers 5, which holds `rope_theta` too.
#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
}

impl Architecture {
    /// Reads a Hugging Face `config.json`, of transformers 4 or 5. Defaults are those of the family's own config class.
    ///
    /// # Errors
    /// [`ArchitectureError`]: not JSON, a missing field, or a value that Attune does not run.
    pub fn from_config_json(text: &[u8]) -> Result<Self, ArchitectureError> {
        let raw: RawConfig = serde_json::from_slice(text).map_err(|e| ArchitectureError::Unreadable(e.to_string()))?;
        let family = family(raw.model_type.as_deref())?;
        refuse_unsupported(&raw)?;
        let need = |field, value: Option<u64>| match value {
            Some(0) => Err(ArchitectureError::Unsupported { field, given: "0".into(), allowed: "1 or more" }),
            Some(value) => Ok(value),
            None => Err(ArchitectureError::Missing(field)),
        };
        let hidden_size = need("hidden_size", raw.hidden_size)?;
        let num_attention_heads = need("num_attention_heads", raw.num_attention_heads)?;
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let windowed = family == Family::Mistral || raw.use_sliding_window == Some(true);
        let architecture = Self {
            family,
            hidden_size,
            intermediate_size: need("intermediate_size", raw.intermediate_size)?,
            num_hidden_layers: need("num_hidden_layers", raw.num_hidden_layers)?,
            num_attention_heads,
            num_key_value_heads: need("num_key_value_heads", raw.num_key_value_heads.or(Some(num_attention_heads)))?,
            head_dim: need("head_dim", raw.head_dim.or(Some(hidden_size / num_attention_heads)))?,
            vocab_size: need("vocab_size", raw.vocab_size)?,
            max_position_embeddings: need("max_position_embeddings", raw.max_position_embeddings)?,
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope.and_then(|r| r.rope_theta).or(raw.rope_theta).unwrap_or(10_000.0),
            rope_scaling: rope.map_or(Ok(None), scaling)?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: family == Family::Qwen2 || raw.attention_bias == Some(true),
            o_bias: family != Family::Qwen2 && raw.attention_bias == Some(true),
            qk_norm: family == Family::Qwen3,
            sliding_window: raw.sliding_window.filter(|_| windowed),
        };
        architecture.consistent()
    }

    fn consistent(self) -> Result<Self, ArchitectureError> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(ArchitectureError::Unsupported {
                field: "num_key_value_heads",
                given: self.num_key_value_heads.to_string(),
                allowed: "a divisor of num_attention_heads",
            });
        }
        if self.head_dim % 2 == 1 {
            return Err(ArchitectureError::Unsupported {
                field: "head_dim",
                given: self.head_dim.to_string(),
                allowed: "an even number",
            });
        }
        Ok(self)
    }
}

fn family(model_type: Option<&str>) -> Result<Family, ArchitectureError> {
    Ok(match model_type.ok_or(ArchitectureError::Missing("model_type"))? {
        "llama" => Family::Llama,
        "mistral" => Family::Mistral,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => {
            return Err(ArchitectureError::Unsupported {
                field: "model_type",
                given: other.into(),
                allowed: "llama, mistral, qwen2, qwen3",
            });
        }
    })
}

fn refuse_unsupported(raw: &RawConfig) -> Result<(), ArchitectureError> {
    if let Some(act) = raw.hidden_act.as_deref().filter(|act| *act != "silu") {
        return Err(ArchitectureError::Unsupported { field: "hidden_act", given: act.into(), allowed: "silu" });
    }
    if raw.mlp_bias == Some(true) {
        return Err(ArchitectureError::Unsupported { field: "mlp_bias", given: "true".into(), allowed: "false" });
    }
    Ok(())
}

fn scaling(raw: &RawRope) -> Result<Option<RopeScaling>, ArchitectureError> {
    let factor = || raw.factor.ok_or(ArchitectureError::Missing("rope_scaling.factor"));
    Ok(match raw.rope_type.as_deref() {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: raw.low_freq_factor.ok_or(ArchitectureError::Missing("rope_scaling.low_freq_factor"))?,
            high_freq_factor: raw
                .high_freq_factor
                .ok_or(ArchitectureError::Missing("rope_scaling.high_freq_factor"))?,
            original_max_position_embeddings: raw
                .original_max_position_embeddings
                .ok_or(ArchitectureError::Missing("rope_scaling.original_max_position_embeddings"))?,
        }),
        Some(other) => {
            return Err(ArchitectureError::Unsupported {
                field: "rope_scaling.rope_type",
                given: other.into(),
                allowed: "default, linear, llama3",
            });
        }
    })
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
