//! The configuration class of a family in transformers: its names, its defaults, and the layers that it describes.

use super::{ArchitectureError, Family, keys::Keys, layer_spec::LayerSpec};

/// A family's configuration class.
pub(super) struct Class {
    /// The family.
    pub(super) family: Family,
    /// The family's `model_type` in `config.json`.
    pub(super) model_type: &'static str,
    /// The numbers of a config that does not set them.
    pub(super) defaults: Defaults,
    /// The keys that this class does not have, each with the allowed value for error messages. Other libraries read
    /// these keys, so any value but `false` is ambiguous.
    pub(super) absent_keys: &'static [(&'static str, &'static str)],
    /// The function that parses this number of layers.
    pub(super) layers: fn(Keys<'_>, u64) -> Result<LayerSpec, ArchitectureError>,
}

/// The values of a class for numbers that a config does not set.
pub(super) struct Defaults {
    pub(super) vocab_size: u64,
    pub(super) intermediate_size: u64,
    pub(super) max_position_embeddings: u64,
    /// The number of key and value heads; `None`: as many as query heads.
    pub(super) num_key_value_heads: Option<u64>,
    /// The width of a head; `None`: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<u64>,
}
