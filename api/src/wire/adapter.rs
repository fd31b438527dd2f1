//! Adapters: what is behind a tuned model's name, to be taken home.

use attune_domain::run::Blob;
use attune_store::adapter::AdapterVersion;
use serde::Serialize;
use utoipa::ToSchema;

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

/// An adapter version: immutable, in PEFT's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AdapterView {
    /// Its id.
    #[schema(example = "adapter_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `adapter`.
    pub object: &'static str,
    /// The name of the model that it makes of its base.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The name of that base.
    pub base_model: String,
    /// What made it.
    pub fine_tuning_job: String,
    /// A folder that PEFT loads.
    pub files: Vec<FolderFile>,
    /// Of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<String>,
    /// Unix time, in seconds.
    pub created_at: i64,
}

impl From<AdapterVersion> for AdapterView {
    fn from(version: AdapterVersion) -> Self {
        Self {
            id: version.adapter_version_id.to_string(),
            object: "adapter",
            model: version.model_name,
            base_model: version.base_model,
            fine_tuning_job: version.job_id.to_string(),
            files: version.files.into_iter().map(FolderFile::from).collect(),
            chat_template_sha256: version.chat_template_sha256,
            created_at: version.created_at.timestamp(),
        }
    }
}
