//! Base models: Hugging Face folders. Their files are uploaded one by one, and a base model is then created from them.

use attune_domain::{bytes::Bytes, digest::Sha256, hub_origin::HubOrigin, run::Blob};
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
    /// The hub that the files were downloaded from. It is not verified.
    pub origin: Option<BaseModelOrigin>,
    /// The licence of the model, by its name in SPDX or in the hub; it is stored in lower case. It is not verified.
    #[schema(example = "apache-2.0", pattern = "^[A-Za-z][A-Za-z0-9._+-]{1,63}$")]
    pub license: Option<String>,
}

/// The origin of a base model's files in a model hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseModelOrigin {
    /// The host of the hub.
    #[schema(example = "huggingface.co")]
    pub host: String,
    /// The repository.
    #[schema(example = "HuggingFaceTB/SmolLM2-135M-Instruct")]
    pub repository: String,
    /// The branch, tag or commit that was requested.
    #[schema(example = "main")]
    pub revision: String,
    /// The commit that the revision was resolved to.
    #[schema(example = "12fd25f77366fa6b3b4b768ec3050bf629380bac", pattern = "^[0-9a-f]{40}$")]
    pub commit: String,
}

impl BaseModelOrigin {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], which names the field.
    pub fn check(self) -> Result<HubOrigin, ApiError> {
        let Self { host, repository, revision, commit } = self;
        let origin = HubOrigin { host, repository, revision, commit };
        origin.check().map_err(|field| ApiError::invalid(field.param, field.to_string()))?;
        Ok(origin)
    }
}

impl From<HubOrigin> for BaseModelOrigin {
    fn from(HubOrigin { host, repository, revision, commit }: HubOrigin) -> Self {
        Self { host, repository, revision, commit }
    }
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
    /// The hub that the files were downloaded from, as stated at the import; `null` if they came from elsewhere.
    pub origin: Option<BaseModelOrigin>,
    /// The licence, as stated at the import; `null` if it is unknown.
    #[schema(example = "apache-2.0")]
    pub license: Option<String>,
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
            origin: base.origin.map(BaseModelOrigin::from),
            license: base.license,
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
