//! Adapters and base models: versions, aliases, manifests, names.

/// Adapter versions, and what a model's name stands for.
pub mod adapter;
/// Names that move from version to version.
pub mod adapter_alias;
/// How an adapter's next version comes to be.
pub mod adapter_version;
/// Base models: Hugging Face folders.
pub mod base_model;
/// Where such versions come from: `attune_manifest.json`.
pub(crate) mod manifest;
/// How tuned models and their checkpoints are named.
pub mod model_name;
