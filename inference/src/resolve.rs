//! The resolution of the model in a request: its base model and its adapter.

use attune_domain::{
    digest::Sha256,
    id::{AdapterVersionId, ApiKeyId, ProjectId},
    run::Blob,
    serve::{AdapterKey, AdapterRef},
    spec::Quantization,
};
use attune_store::{
    adapters::{
        adapter::{self, Model},
        base_model,
    },
    db::Tx,
    error::StoreError,
    files::objects::Objects,
    jobs::checkpoint_permission,
    replica::ServedBase,
};

use crate::{context::Inference, error::InferenceError, metering::Account};

/// A resolved model.
#[derive(Debug, Clone)]
pub struct AskedModel {
    /// The project of the request.
    pub project_id: ProjectId,
    /// The model's own name, whatever alias the request used.
    pub name: String,
    /// The base model, in the quantization in which it is served.
    pub base: ServedBase,
    /// The adapter; `None` for the base model itself.
    pub adapter: Option<AdapterRef>,
    /// The fingerprint of the base's content and its quantization.
    pub system_fingerprint: String,
    /// The adapter version; `None` for a base model or a checkpoint.
    adapter_version_id: Option<AdapterVersionId>,
}

impl AskedModel {
    /// Returns the account that answers of this model are charged to.
    pub fn account(&self, project_id: ProjectId, api_key_id: Option<ApiKeyId>) -> Account {
        let (model, adapter_version_id) = (self.name.clone(), self.adapter_version_id);
        Account { project_id, api_key_id, model, adapter_version_id }
    }
}

/// Finds the model with this name: a base model, one of the project's own, a checkpoint of one, or a checkpoint that
/// another project shares with this one. `tx` is a transaction of the project.
///
/// # Errors
/// [`InferenceError::ModelNotFound`]: the project has no such model.
pub async fn find(
    inference: &Inference,
    mut tx: Tx,
    project: ProjectId,
    name: &str,
) -> Result<AskedModel, InferenceError> {
    let mut found = adapter::resolve(&mut tx, project, name).await;
    if let Err(StoreError::NotFound(_)) = found
        && let Some(owner) = checkpoint_permission::owner(&mut tx, project, name).await?
    {
        // A shared checkpoint is looked up in its owner's project, by the same name.
        drop(tx);
        tx = inference.tenant(owner).await?;
        found = adapter::resolve(&mut tx, owner, name).await;
    }
    let model = found.map_err(|error| match error {
        StoreError::NotFound(_) => InferenceError::ModelNotFound(name.to_owned()),
        other => other.into(),
    })?;
    let base = base_model::get(&mut tx, model.base_model_id()).await?;
    drop(tx); // waiting for a replica may take minutes
    let quantization = model.quantization().unwrap_or(inference.serving.base_quantization);
    Ok(AskedModel {
        project_id: project,
        name: model.name().to_owned(),
        base: ServedBase { base_model_id: base.base_model_id, quantization },
        adapter: adapter_ref(&inference.objects, &model).await?,
        system_fingerprint: fingerprint(base.digest, quantization),
        adapter_version_id: match &model {
            Model::Tuned(version) => Some(version.adapter_version_id),
            Model::Base(_) | Model::Checkpoint(_) => None,
        },
    })
}

/// Returns a fingerprint such as `fp_0123456789ab_nf4-double`: the beginning of the base's digest, and the
/// quantization.
fn fingerprint(digest: Sha256, quantization: Quantization) -> String {
    format!("fp_{digest:.12}_{quantization}")
}

async fn adapter_ref(objects: &Objects, model: &Model) -> Result<Option<AdapterRef>, InferenceError> {
    let (id, blobs): (_, Vec<&Blob>) = match model {
        Model::Base(_) => return Ok(None),
        Model::Tuned(version) => (AdapterKey::Version(version.adapter_version_id), version.files.iter().collect()),
        Model::Checkpoint(named) => {
            (AdapterKey::Checkpoint(named.checkpoint.checkpoint_id), named.adapter_files().collect())
        }
    };
    let mut files = Vec::with_capacity(blobs.len());
    for blob in blobs {
        files.push(objects.remote_file(&blob.name, blob.sha256, blob.bytes).await?);
    }
    Ok(Some(AdapterRef { id, files }))
}
