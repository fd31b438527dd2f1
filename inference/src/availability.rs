//! The availability of a model, which the requests of batches wait for before they are sent.

use std::time::Duration;

use attune_domain::id::ProjectId;
use tokio::time::Instant;

use crate::{
    context::Inference,
    error::InferenceError,
    replicas,
    resolve::{self, AskedModel, ModelName},
};

/// Returns the model with this name; `None`: the project has no such model.
///
/// # Errors
/// The database or the object store is unavailable.
pub async fn find(inference: &Inference, project: ProjectId, name: &str) -> Result<Option<AskedModel>, InferenceError> {
    let tx = inference.tenant(project).await?;
    match resolve::find(inference, tx, project, ModelName::new(name, None, "")).await {
        Ok(model) => Ok(Some(model)),
        Err(InferenceError::ModelNotFound(_) | InferenceError::Invalid { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until a replica of the model's base is ready, which is started if necessary.
///
/// # Errors [`InferenceError::NotReady`]: none is ready in time. [`InferenceError::ReplicaUnavailable`]: it cannot be
/// started. The database is unavailable.
pub async fn wait(inference: &Inference, model: &AskedModel) -> Result<(), InferenceError> {
    let _load = inference.loads.count(model.base);
    let deadline = Instant::now() + Duration::from_secs(inference.serving.wait_seconds);
    replicas::ready(inference, model, deadline).await.map(drop)
}
