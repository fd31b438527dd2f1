//! Adapter versions and their files, for export, and aliases, which can be moved from version to version.

/// The residency of versions.
pub mod residency;

use attune_domain::{digest::Sha256, manifest, run::Blob, spec::AdapterSpec};
use attune_store::adapters::{
    adapter::AdapterVersion,
    adapter_alias::{Alias, Move},
};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::Digest;
use utoipa::ToSchema;

use crate::wire::{
    job_view::QuantizationView,
    promotion::{canary::CanaryView, shadow::ShadowView},
};

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FolderFile {
    /// The name of the file in the folder.
    #[schema(example = "adapter_model.safetensors")]
    pub name: String,
    /// The SHA-256 digest of the content, in hex.
    pub sha256: String,
    /// The size in bytes.
    pub bytes: u64,
}

impl From<Blob> for FolderFile {
    fn from(blob: Blob) -> Self {
        Self { name: blob.name, sha256: blob.sha256.to_string(), bytes: blob.bytes.0 }
    }
}

/// The adapter's LoRA configuration, in PEFT's terms.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ShapeView {
    /// The rank of the two LoRA factors.
    pub rank: u32,
    /// The LoRA alpha: the correction is scaled by `lora_alpha / rank`.
    pub lora_alpha: f64,
    /// The projections that have a correction.
    pub target_modules: Vec<String>,
    /// The dropout probability of the correction's inputs while training.
    pub lora_dropout: f64,
    /// If `true`, the scale is `lora_alpha / √rank` instead (rsLoRA).
    pub use_rslora: bool,
    /// If `true`, the magnitudes of the corrected weight's rows are trained (DoRA).
    pub use_dora: bool,
}

impl From<AdapterSpec> for ShapeView {
    fn from(spec: AdapterSpec) -> Self {
        Self {
            rank: spec.rank,
            lora_alpha: spec.lora_alpha,
            target_modules: spec.target_modules,
            lora_dropout: spec.lora_dropout,
            use_rslora: spec.use_rslora,
            use_dora: spec.use_dora,
        }
    }
}

/// An immutable version of an adapter, as a PEFT folder.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdapterView {
    /// The version's ID.
    #[schema(example = "adapter_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `adapter`.
    pub object: &'static str,
    /// The adapter's name: the job's suffix, or the name given to the import.
    #[schema(example = "records")]
    pub name: String,
    /// The version number, from 1. `records@2` is also a model name.
    pub version: i32,
    /// The aliases that currently point to the version; `records@prod` is a model name.
    pub aliases: Vec<String>,
    /// The name of the fine-tuned model: the base model with this adapter version.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The name of the base model.
    pub base_model: String,
    /// The quantization of the base model with which the adapter was trained and is served.
    pub quantization: QuantizationView,
    /// The ID of the job that trained the version; `null` if it was imported.
    pub fine_tuning_job: Option<String>,
    /// The LoRA configuration.
    pub adapter: ShapeView,
    /// The digest of the content: SHA-256 over a line `<sha256>  <name>` for each file except the manifest, sorted by
    /// name.
    pub digest: String,
    /// The files of a folder that PEFT loads, and `attune_manifest.json`.
    pub files: Vec<FolderFile>,
    /// The SHA-256 digest of the chat template that the training rows were rendered with.
    pub chat_template_sha256: Option<String>,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
}

impl From<AdapterVersion> for AdapterView {
    fn from(version: AdapterVersion) -> Self {
        let manifest = version.manifest.as_deref().map(manifest_file);
        Self {
            id: version.adapter_version_id.to_string(),
            object: "adapter",
            name: version.adapter,
            version: version.version,
            aliases: version.aliases,
            model: version.model_name,
            base_model: version.base_model,
            quantization: version.quantization.into(),
            fine_tuning_job: version.job_id.map(|id| id.to_string()),
            adapter: version.spec.into(),
            digest: version.digest.to_string(),
            files: version.files.into_iter().map(FolderFile::from).chain(manifest).collect(),
            chat_template_sha256: version.chat_template_sha256.map(|digest| digest.to_string()),
            created_at: version.created_at.timestamp(),
        }
    }
}

/// Describes the manifest, which is stored in the row, not in the object store.
fn manifest_file(text: &str) -> FolderFile {
    let sha256 = Sha256::from_digest(sha2::Sha256::digest(text.as_bytes()).into());
    FolderFile { name: manifest::FILE.into(), sha256: sha256.to_string(), bytes: text.len() as u64 }
}

/// The form of an adapter import. For the OpenAPI document only: the handler reads the form as a stream.
#[derive(Debug, ToSchema)]
pub struct AdapterForm {
    /// The name of the adapter. An adapter that has this name already gets a new version.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub name: String,
    /// The name of the base model that the adapter was trained for.
    pub base_model: String,
    /// The digest of that base model: asserts that the folder was made for exactly this content, whatever name the
    /// folder gives.
    pub base_digest: Option<String>,
    /// The quantization of the base model with which the adapter was trained and will be served: `none`, `int8`, `nf4`
    /// or `nf4-double` (NF4 with double quantization). Defaults to the value in `attune_manifest.json`, or else to
    /// `none`.
    #[schema(example = "nf4-double")]
    pub quantization: Option<String>,
    /// The files of the folder, each with its own filename.
    #[schema(format = Binary, value_type = Vec<String>)]
    pub files: Vec<Vec<u8>>,
}

/// The request body for creating or moving an alias.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAlias {
    /// A version of the adapter: its number, its ID or its model name.
    #[schema(example = "2")]
    pub version: String,
    /// The version that the alias must currently point to; `null`: the alias must not exist yet. If omitted, the alias
    /// moves unconditionally.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<String>)]
    pub expected: Option<Option<String>>,
}

/// Deserializes an optional field so that `null` and an omitted field are distinguished.
pub(crate) fn double_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// An alias: a name that points to one version of an adapter and can be moved.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AliasView {
    /// The name of the alias as a model, for `model` in a request.
    #[schema(example = "records@prod")]
    pub id: String,
    /// The object type, always `adapter.alias`.
    pub object: &'static str,
    /// The adapter's name.
    pub adapter: String,
    /// The alias without the adapter's name.
    #[schema(example = "prod")]
    pub alias: String,
    /// The number of the version that the alias points to.
    pub version: i32,
    /// The ID of that version.
    pub adapter_version: String,
    /// The model name of that version.
    pub model: String,
    /// The ID of the version that a rollback returns to; `null` if there is none.
    pub previous_version: Option<String>,
    /// The last canary of the alias, running or ended; `null` if there was none.
    pub canary: Option<CanaryView>,
    /// The last shadow of the alias, active or ended; `null` if there was none.
    pub shadow: Option<ShadowView>,
    /// The time at which the alias was set to this version, in Unix seconds.
    pub moved_at: i64,
}

impl AliasView {
    /// Creates the view of an alias of the adapter with this name.
    pub fn new(adapter: &str, alias: Alias, canary: Option<CanaryView>, shadow: Option<ShadowView>) -> Self {
        Self {
            id: format!("{adapter}@{}", alias.alias),
            object: "adapter.alias",
            adapter: adapter.to_owned(),
            alias: alias.alias,
            version: alias.version,
            adapter_version: alias.adapter_version_id.to_string(),
            model: alias.model_name,
            previous_version: alias.previous.map(|id| id.to_string()),
            canary,
            shadow,
            moved_at: alias.moved_at.timestamp(),
        }
    }
}

/// A move of an alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AliasMoveView {
    /// The move's ID.
    pub id: String,
    /// The object type, always `adapter.alias.move`.
    pub object: &'static str,
    /// The ID of the version that the alias pointed to before; `null` if it did not exist.
    pub from: Option<String>,
    /// The ID of the version that the alias pointed to afterwards; `null` if it was deleted.
    pub to: Option<String>,
    /// The time of the move, in Unix seconds.
    pub created_at: i64,
}

impl From<Move> for AliasMoveView {
    fn from(step: Move) -> Self {
        Self {
            id: step.adapter_alias_move_id.to_string(),
            object: "adapter.alias.move",
            from: step.from.map(|id| id.to_string()),
            to: step.to.map(|id| id.to_string()),
            created_at: step.moved_at.timestamp(),
        }
    }
}
