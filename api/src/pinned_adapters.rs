//! The adapters that a deployment pins: of its project, and over its base in its quantization.

use attune_domain::{
    id::{AdapterVersionId, ProjectId},
    serve::Engine,
};
use attune_store::{adapters::adapter, error::StoreError, pools::deployment::MOST_PINNED, replica::ServedBase};
use sqlx::PgConnection;

use crate::{error::ApiError, http::path_id::truncated};

/// The pool of a deployment, and its engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PinnedTo {
    /// The pool.
    pub(crate) base: ServedBase,
    /// The engine.
    pub(crate) engine: Engine,
}

/// Returns the versions that these names of a request refer to now, each once.
///
/// # Errors
/// [`ApiError::Invalid`]: there are too many, one does not exist in the project, or replicas of the pool cannot serve
/// it.
pub(crate) async fn resolve(
    tx: &mut PgConnection,
    project: ProjectId,
    names: &[String],
    to: PinnedTo,
) -> Result<Vec<AdapterVersionId>, ApiError> {
    let count = names.len();
    if count > MOST_PINNED {
        return Err(invalid(&format!("{count} adapters. Pin at most {MOST_PINNED}")));
    }
    let mut versions = Vec::with_capacity(count);
    for name in names {
        let shown = truncated(name);
        let version = match adapter::lock(tx, project, name).await {
            Err(StoreError::NotFound(_)) => return Err(invalid(&format!("the project has no adapter '{shown}'"))),
            found => found?,
        };
        if version.base_model_id != to.base.base_model_id {
            return Err(invalid(&format!("'{shown}' is an adapter of the base model '{}'", version.base_model)));
        }
        if version.quantization != to.base.quantization {
            let (theirs, ours) = (version.quantization, to.base.quantization);
            return Err(invalid(&format!(
                "'{shown}' is served over its base in {theirs}, and this deployment is {ours}"
            )));
        }
        if let Some(reason) = to.engine.adapter_refusal(&version.spec, None) {
            return Err(invalid(&format!("'{shown}' cannot be served: {reason}")));
        }
        if !versions.contains(&version.adapter_version_id) {
            versions.push(version.adapter_version_id);
        }
    }
    Ok(versions)
}

fn invalid(reason: &str) -> ApiError {
    ApiError::invalid("pinned_adapters", format!("Invalid 'pinned_adapters': {reason}."))
}
