//! Base models: Hugging Face folders, brought file by file and then named.

use attune_domain::{bytes::Bytes, run::Blob};
use attune_store::adapters::base_model::BaseModel;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::adapter::FolderFile;
use crate::{error::ApiError, http::path_id::shown};

/// A base model to be made of files that were uploaded before.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBaseModel {
    /// How users name it.
    #[schema(example = "smollm2-135m-instruct", pattern = "^[a-z0-9][a-z0-9._-]{0,95}$")]
    pub name: String,
    /// Its folder: `config.json`, `tokenizer.json`, safetensors and what else belongs to it.
    pub files: Vec<NewFolderFile>,
    /// `project`: only the key's project may use it. `installation`: every project may; for keys with the scope
    /// `installation`, and what they mean if nothing is said. For all others it is `project`.
    pub owner: Option<Owner>,
}

/// Who owns a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// One project, which alone may use it.
    Project,
    /// The installation: every project may use it.
    Installation,
}

impl Owner {
    /// Reads the query's word.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: there is no such owner.
    pub fn read(text: &str) -> Result<Self, ApiError> {
        match text {
            "project" => Ok(Self::Project),
            "installation" => Ok(Self::Installation),
            other => {
                let shown = shown(other);
                let message = format!("Invalid 'owner': '{shown}'; it must be 'project' or 'installation'.");
                Err(ApiError::invalid("owner", message))
            }
        }
    }
}

/// A file of the folder.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFolderFile {
    /// Its name in the folder.
    pub name: String,
    /// SHA-256 of its content, under which it was uploaded.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

impl From<NewFolderFile> for Blob {
    fn from(file: NewFolderFile) -> Self {
        Self { name: file.name, sha256: file.sha256, bytes: Bytes(file.bytes) }
    }
}

/// A base model.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BaseModelView {
    /// Its id.
    pub id: String,
    /// Always `base_model`.
    pub object: &'static str,
    /// How users name it.
    pub name: String,
    /// Whose it is. A project's own hides the installation's of the same name.
    pub owner: Owner,
    /// Names its content: SHA-256 over the sorted names and digests of its files.
    pub digest: String,
    /// Its shape, in the words of `config.json`.
    #[schema(value_type = Object)]
    pub architecture: serde_json::Value,
    /// Its folder.
    pub files: Vec<FolderFile>,
    /// Unix time, in seconds.
    pub created_at: i64,
}

impl BaseModelView {
    /// A base model with its files.
    pub fn new(base: BaseModel, files: Vec<Blob>) -> Self {
        Self {
            id: base.base_model_id.to_string(),
            object: "base_model",
            name: base.name,
            owner: if base.project_id.is_some() { Owner::Project } else { Owner::Installation },
            digest: base.digest,
            architecture: serde_json::to_value(&base.architecture).unwrap_or_default(),
            files: files.into_iter().map(FolderFile::from).collect(),
            created_at: base.created_at.timestamp(),
        }
    }
}

/// Where an uploaded file lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BlobView {
    /// Always `blob`.
    pub object: &'static str,
    /// SHA-256 of its content.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}
