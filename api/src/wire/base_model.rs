//! Base models: Hugging Face folders. Their files are uploaded one by one, and a base model is then created from them.

use attune_domain::{bytes::Bytes, digest::Sha256, run::Blob};
use attune_store::adapters::base_model::BaseModel;
use serde::{Deserialize, Serialize};
use strum::EnumString;
use utoipa::ToSchema;

use super::adapter::FolderFile;
use crate::{error::ApiError, http::path_id::truncated};

/// The request body for creating a base model from uploaded files.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBaseModel {
    /// The name of the base model.
    #[schema(example = "smollm2-135m-instruct", pattern = "^[a-z0-9][a-z0-9._-]{0,95}$")]
    pub name: String,
    /// The files of its folder: `config.json`, `tokenizer.json`, safetensors and any other file that belongs to it.
    pub files: Vec<NewFolderFile>,
    /// The owner. `project`: only the key's project may use the model. `installation`: every project may; requires the
    /// scope `installation`. Defaults to `installation` for keys with that scope, and to `project` for all others.
    pub owner: Option<Owner>,
}

/// The owner of a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumString, ToSchema)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Owner {
    /// One project, which alone may use the model.
    Project,
    /// The installation: every project may use the model.
    Installation,
}

impl Owner {
    /// Parses the query parameter.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the value is not an owner.
    pub fn read(text: &str) -> Result<Self, ApiError> {
        text.parse().map_err(|_| {
            let shown = truncated(text);
            let message = format!("Invalid 'owner': '{shown}'; it must be 'project' or 'installation'.");
            ApiError::invalid("owner", message)
        })
    }
}

/// A file of the folder.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFolderFile {
    /// The name of the file in the folder.
    pub name: String,
    /// The SHA-256 digest of the content, under which it was uploaded.
    pub sha256: String,
    /// The size in bytes.
    pub bytes: u64,
}

/// A base model.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BaseModelView {
    /// The base model's ID.
    pub id: String,
    /// The object type, always `base_model`.
    pub object: &'static str,
    /// The name of the base model.
    pub name: String,
    /// The owner. A project's model takes precedence over the installation's model of the same name.
    pub owner: Owner,
    /// The digest of the content: SHA-256 over the sorted names and digests of its files.
    pub digest: String,
    /// The architecture, in the terms of `config.json`.
    #[schema(value_type = Object)]
    pub architecture: serde_json::Value,
    /// The files of its folder.
    pub files: Vec<FolderFile>,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
}

impl BaseModelView {
    /// Creates the view of a base model and its files.
    pub fn new(base: BaseModel, files: Vec<Blob>) -> Self {
        Self {
            id: base.base_model_id.to_string(),
            object: "base_model",
            name: base.name,
            owner: if base.project_id.is_some() { Owner::Project } else { Owner::Installation },
            digest: base.digest.to_string(),
            architecture: serde_json::to_value(&base.architecture).unwrap_or_default(),
            files: files.into_iter().map(FolderFile::from).collect(),
            created_at: base.created_at.timestamp(),
        }
    }
}

/// An uploaded file of a base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BlobView {
    /// The object type, always `blob`.
    pub object: &'static str,
    /// The SHA-256 digest of the content, in hex.
    pub sha256: String,
    /// The size in bytes.
    pub bytes: u64,
}

impl BlobView {
    /// Creates the view of an uploaded file.
    pub fn new(sha256: Sha256, bytes: Bytes) -> Self {
        Self { object: "blob", sha256: sha256.to_string(), bytes: bytes.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_by_the_name_in_json() {
        for owner in [Owner::Project, Owner::Installation] {
            let name = serde_json::to_value(owner).unwrap();
            assert_eq!(Owner::read(name.as_str().unwrap()).unwrap(), owner);
        }
        let refused = Owner::read("Project").unwrap_err().to_string();
        assert_eq!(refused, "Invalid 'owner': 'Project'; it must be 'project' or 'installation'.");
    }
}
