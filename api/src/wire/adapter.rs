//! Adapters: what is behind a tuned model's name, to be taken home, and the names that move.

use attune_domain::{manifest, run::Blob, spec::AdapterSpec};
use attune_store::adapters::{
    adapter::AdapterVersion,
    adapter_alias::{Alias, Move},
    base_model::hex,
};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::wire::job_view::QuantizationView;

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FolderFile {
    /// Its name in the folder.
    #[schema(example = "adapter_model.safetensors")]
    pub name: String,
    /// SHA-256 of its content.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

impl From<Blob> for FolderFile {
    fn from(blob: Blob) -> Self {
        Self { name: blob.name, sha256: blob.sha256, bytes: blob.bytes.0 }
    }
}

/// An adapter's shape, in PEFT's words.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ShapeView {
    /// Rank of the two factors.
    pub rank: u32,
    /// The correction is scaled by `lora_alpha / rank`.
    pub lora_alpha: f64,
    /// Which projections have one.
    pub target_modules: Vec<String>,
    /// Share of the inputs that was set to zero while training.
    pub lora_dropout: f64,
    /// Scaled by `lora_alpha / √rank` instead.
    pub use_rslora: bool,
    /// With trained lengths of the corrected weight's rows.
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

/// A version of an adapter: immutable, in PEFT's form.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdapterView {
    /// Its id.
    #[schema(example = "adapter_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `adapter`.
    pub object: &'static str,
    /// The name of the lineage: a job's suffix, or what an import is called.
    #[schema(example = "records")]
    pub name: String,
    /// Its number in the lineage, from 1. `records@2` names it, as a model too.
    pub version: i32,
    /// The aliases that name it now; `records@prod` is a model's name.
    pub aliases: Vec<String>,
    /// The name of the model that it makes of its base.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The name of that base.
    pub base_model: String,
    /// The quantization of the base that it was trained over, and is served over.
    pub quantization: QuantizationView,
    /// What made it; `null`: it was imported.
    pub fine_tuning_job: Option<String>,
    /// Its shape.
    pub adapter: ShapeView,
    /// Names its content: SHA-256 over a line `<sha256>  <name>` per file, the manifest left out, sorted by name.
    pub digest: String,
    /// A folder that PEFT loads, and `attune_manifest.json`.
    pub files: Vec<FolderFile>,
    /// Of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<String>,
    /// Unix time, in seconds.
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
            digest: version.digest,
            files: version.files.into_iter().map(FolderFile::from).chain(manifest).collect(),
            chat_template_sha256: version.chat_template_sha256,
            created_at: version.created_at.timestamp(),
        }
    }
}

/// The manifest lies in the row, not in the object store.
fn manifest_file(text: &str) -> FolderFile {
    let sha256 = hex(&Sha256::digest(text.as_bytes()));
    FolderFile { name: manifest::FILE.into(), sha256, bytes: text.len() as u64 }
}

/// The form of an import. Only a description: the form is read piece by piece.
#[derive(Debug, ToSchema)]
pub struct AdapterForm {
    /// What to call the adapter; one of this name gets a new version.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub name: String,
    /// The name of the base model here that it corrects.
    pub base_model: String,
    /// The digest of that base: says that it is the very one that the folder was made for, whatever the folder calls it.
    pub base_digest: Option<String>,
    /// The quantization of the base that it was trained over, and will be served over: `none`, `int8`, `nf4` or
    /// `nf4-double`, NF4 with double quantization. Left out: what `attune_manifest.json` says, or else `none`.
    #[schema(example = "nf4-double")]
    pub quantization: Option<String>,
    /// The folder's files, each under its own name.
    #[schema(format = Binary, value_type = Vec<String>)]
    pub files: Vec<Vec<u8>>,
}

/// Where an alias is to go.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAlias {
    /// A version of the adapter: its number, its id, or its model's name.
    #[schema(example = "2")]
    pub version: String,
    /// The alias moves only if it names this version now; `null`: only if it is not there yet. Left out: whatever it names.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub expected: Option<Option<String>>,
}

/// Tells `null` from what is left out.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A name that moves from version to version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AliasView {
    /// What `model` is in a request.
    #[schema(example = "records@prod")]
    pub id: String,
    /// Always `adapter.alias`.
    pub object: &'static str,
    /// The adapter's name.
    pub adapter: String,
    /// The alias alone.
    #[schema(example = "prod")]
    pub alias: String,
    /// The number of the version that it names.
    pub version: i32,
    /// The id of that.
    pub adapter_version: String,
    /// The name of its model.
    pub model: String,
    /// When it came to name it. Unix time, in seconds.
    pub moved_at: i64,
}

impl AliasView {
    /// An alias of the adapter of this name.
    pub fn new(adapter: &str, alias: Alias) -> Self {
        Self {
            id: format!("{adapter}@{}", alias.alias),
            object: "adapter.alias",
            adapter: adapter.to_owned(),
            alias: alias.alias,
            version: alias.version,
            adapter_version: alias.adapter_version_id.to_string(),
            model: alias.model_name,
            moved_at: alias.moved_at.timestamp(),
        }
    }
}

/// One move of an alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AliasMoveView {
    /// Its id.
    pub id: String,
    /// Always `adapter.alias.move`.
    pub object: &'static str,
    /// The id of the version that it named before; `null`: it was not there.
    pub from: Option<String>,
    /// The id of the version that it names since; `null`: it was taken away.
    pub to: Option<String>,
    /// Unix time, in seconds.
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
