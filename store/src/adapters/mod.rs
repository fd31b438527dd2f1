//! Adapters and base models: versions, aliases, manifests, names.

/// Adapter versions, and the resolution of model names.
pub mod adapter;
/// Aliases: names that move from version to version.
pub mod adapter_alias;
/// Creation of an adapter's next version.
pub mod adapter_version;
/// Base models: Hugging Face folders.
pub mod base_model;
/// The provenance of versions: `attune_manifest.json`.
pub(crate) mod manifest;
/// Names of fine-tuned models and their checkpoints.
pub mod model_name;
