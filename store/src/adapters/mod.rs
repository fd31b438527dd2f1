//! Adapters and base models: versions, aliases, manifests, names.

/// Adapter versions, and the resolution of model names.
pub mod adapter;
/// Aliases: names that move from version to version.
pub mod adapter_alias;
/// Canaries of aliases.
pub mod adapter_canary;
/// Prefetches: versions that replicas load ahead of requests.
pub mod adapter_prefetch;
/// Shadows of aliases.
pub mod adapter_shadow;
/// The traffic of versions.
pub mod adapter_traffic;
/// Creation of an adapter's next version.
pub mod adapter_version;
/// The route of an alias's requests: its versions, canary and shadow.
pub mod alias_route;
/// Base models: Hugging Face folders.
pub mod base_model;
/// The provenance of versions: `attune_manifest.json`.
pub(crate) mod manifest;
/// Names of fine-tuned models and their checkpoints.
pub mod model_name;
