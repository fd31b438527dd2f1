//! The resolution of the model in a request: its base model and its adapter. An alias may have several versions: the
//! one that it names, a canary for a share of the requests, and a shadow for copies of them.

use attune_domain::{
    digest::Sha256,
    id::{AdapterCanaryId, AdapterShadowId, AdapterVersionId, ApiKeyId, ProjectId},
    placement::ServedCompute,
    run::Blob,
    serve::{AdapterKey, AdapterRef},
    spec::Quantization,
};
use attune_store::{
    adapters::{
        adapter::{self, Model},
        adapter_traffic::TrafficKey,
        alias_route,
        base_model::{self, BaseModel},
    },
    db::Tx,
    error::StoreError,
    files::objects::Objects,
    jobs::checkpoint_permission,
    pools::deployment,
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
    /// The base model, in the quantization in which it is served, and the deployment of the project that serves it.
    pub base: ServedBase,
    /// The adapter; `None` for the base model itself.
    pub adapter: Option<AdapterRef>,
    /// The fingerprint of the base's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
    /// The adapter that a rollback of the request's alias would return to: the replica keeps it in memory.
    pub keep: Option<AdapterKey>,
    /// The adapter version; `None` for a base model or a checkpoint.
    adapter_version_id: Option<AdapterVersionId>,
    /// The canary that runs on the request's alias, whichever version answers.
    adapter_canary_id: Option<AdapterCanaryId>,
    /// The shadow that answers a copy of the request.
    pub(crate) shadow: Option<ShadowVersion>,
    /// `false`: the request is a copy for a shadow, which is no traffic of its version.
    is_traffic: bool,
}

/// The shadow that answers a copy of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShadowVersion {
    /// The shadow's ID.
    pub(crate) id: AdapterShadowId,
    /// The version that answers.
    pub(crate) version: AdapterVersionId,
}

/// The model that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelName<'a> {
    /// The name: of a base model, a version, a checkpoint, or an alias.
    pub name: &'a str,
    /// The key by which an alias's requests are split between its versions: the caller's, or else the request's ID.
    pub split_key: &'a str,
}

impl<'a> ModelName<'a> {
    /// Returns the name with the caller's key, or else with the request's ID as the key.
    pub(crate) fn new(name: &'a str, split_key: Option<&'a str>, request_id: &'a str) -> Self {
        Self { name, split_key: split_key.unwrap_or(request_id) }
    }
}

impl AskedModel {
    /// Returns the ID of the adapter version that answers; `None` for a base model or a checkpoint.
    pub(crate) const fn adapter_version(&self) -> Option<AdapterVersionId> {
        self.adapter_version_id
    }

    /// Returns the version and the canary whose traffic the request is.
    pub(crate) fn traffic(&self) -> Option<TrafficKey> {
        let adapter_version_id = self.adapter_version_id.filter(|_| self.is_traffic)?;
        let (adapter_canary_id, project_id) = (self.adapter_canary_id, self.project_id);
        Some(TrafficKey { adapter_version_id, adapter_canary_id, project_id })
    }

    /// Returns the model with a merge of adapters instead of its own. It is no traffic of any version.
    pub(crate) fn with_merge(self, name: String, adapter: AdapterRef) -> Self {
        Self {
            name,
            system_fingerprint: format!("{}_{:.12}", self.system_fingerprint, adapter.id),
            adapter: Some(adapter),
            keep: None,
            adapter_version_id: None,
            adapter_canary_id: None,
            shadow: None,
            is_traffic: false,
            ..self
        }
    }

    /// Returns the account that answers of this model are charged to.
    pub(crate) fn account(&self, api_key_id: Option<ApiKeyId>) -> Account {
        let (project_id, model, adapter_version_id) = (self.project_id, self.name.clone(), self.adapter_version_id);
        let is_charged_by_hour = self.base.deployment_id.is_some();
        Account { project_id, api_key_id, model, adapter_version_id, is_charged_by_hour }
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
    ModelName { name, split_key }: ModelName<'_>,
) -> Result<AskedModel, InferenceError> {
    // The version of a route may be deleted as soon as the alias has moved; the route is read again then.
    for is_last in [false, true] {
        let Some(route) = alias_route::find(&mut tx, project, name).await? else { break };
        let version = match adapter::get(&mut tx, project, route.version(split_key)).await {
            Err(StoreError::NotFound(_)) if !is_last => continue,
            version => version.map_err(|error| not_found(error, name))?,
        };
        return Ok(AskedModel {
            keep: route.previous.map(AdapterKey::Version),
            adapter_canary_id: route.canary.map(|canary| canary.id),
            shadow: route.shadow(split_key).map(|shadow| ShadowVersion { id: shadow.id, version: shadow.version }),
            ..asked(inference, tx, project, &Model::Tuned(version)).await?
        });
    }
    let mut found = adapter::resolve(&mut tx, project, name).await;
    if let Err(StoreError::NotFound(_)) = found
        && let Some(owner) = checkpoint_permission::owner(&mut tx, project, name).await?
    {
        // A shared checkpoint is looked up in its owner's project, by the same name.
        drop(tx);
        tx = inference.tenant(owner).await?;
        found = adapter::resolve(&mut tx, owner, name).await;
    }
    let model = found.map_err(|error| not_found(error, name))?;
    asked(inference, tx, project, &model).await
}

/// Returns a version of the project as the model of a copy of a request.
///
/// # Errors
/// [`InferenceError::ModelNotFound`]: the version was deleted.
pub(crate) async fn shadow(
    inference: &Inference,
    project: ProjectId,
    version: AdapterVersionId,
) -> Result<AskedModel, InferenceError> {
    let mut tx = inference.tenant(project).await?;
    let found = adapter::get(&mut tx, project, version).await;
    let found = found.map_err(|error| not_found(error, &version.to_string()))?;
    Ok(AskedModel { is_traffic: false, ..asked(inference, tx, project, &Model::Tuned(found)).await? })
}

fn not_found(error: StoreError, name: &str) -> InferenceError {
    match error {
        StoreError::NotFound(_) => InferenceError::ModelNotFound(name.to_owned()),
        other => other.into(),
    }
}

/// Returns the model with everything that a request to its replica needs.
async fn asked(
    inference: &Inference,
    mut tx: Tx,
    project: ProjectId,
    model: &Model,
) -> Result<AskedModel, InferenceError> {
    let base = base_model::get(&mut tx, model.base_model_id()).await?;
    let quantization = model.quantization().unwrap_or(inference.serving.base_quantization);
    let pool = deployment::pool_of(&mut tx, project, base.base_model_id, quantization).await?;
    drop(tx); // waiting for a replica may take minutes
    let version = match model {
        Model::Tuned(version) => Some(version.adapter_version_id),
        Model::Base(_) | Model::Checkpoint(_) => None,
    };
    Ok(AskedModel {
        project_id: project,
        name: model.name().to_owned(),
        base: pool,
        adapter: adapter_ref(&inference.objects, model).await?,
        system_fingerprint: fingerprint(&base, (quantization, inference.serving.compute), adapter_digest(model)),
        keep: None,
        adapter_version_id: version,
        adapter_canary_id: None,
        shadow: None,
        is_traffic: true,
    })
}

/// Returns the digest of the adapter's content; `None` for a base model.
fn adapter_digest(model: &Model) -> Option<Sha256> {
    match model {
        Model::Base(_) => None,
        Model::Tuned(version) => Some(version.digest),
        Model::Checkpoint(named) => Some(base_model::digest(&named.adapter_files().cloned().collect::<Vec<_>>())),
    }
}

/// Returns a fingerprint such as `fp_0123456789ab_nf4-double-packed_89abcdef0123`: the beginning of the base's digest,
/// the quantization, with the way of computing if that is not `f32`, and the beginning of the adapter's digest, if
/// there is one. A base that is served in the blocks of a GGUF file has the quantization `gguf`.
fn fingerprint(
    base: &BaseModel,
    (quantization, compute): (Quantization, ServedCompute),
    adapter: Option<Sha256>,
) -> String {
    let in_blocks = quantization == Quantization::None && base.architecture.gguf_blocks.is_some();
    let compute = match (quantization, compute) {
        (_, ServedCompute::F32) => String::new(),
        (Quantization::None, _) if !in_blocks => String::new(),
        (_, ServedCompute::Packed) => format!("-{}", compute.name()),
    };
    let quantization = if in_blocks { "gguf" } else { quantization.name() };
    let (digest, adapter) = (base.digest, adapter.map(|digest| format!("_{digest:.12}")).unwrap_or_default());
    format!("fp_{digest:.12}_{quantization}{compute}{adapter}")
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
    Ok(Some(AdapterRef { id, files, merge: None }))
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::{Architecture, gguf_blocks::KeptBlocks},
        id::BaseModelId,
    };

    use super::*;

    #[test]
    fn a_fingerprint_names_the_base_its_quantization_the_computing_and_the_adapter() {
        let digest = |byte: u8| Sha256::from_digest([byte; 32]);
        let config = include_bytes!("../../domain/testdata/tiny.json");
        let mut base = BaseModel {
            base_model_id: BaseModelId::new(uuid::Uuid::from_u128(1)),
            project_id: None,
            name: "tiny".into(),
            digest: digest(1),
            architecture: Architecture::from_config_json(config).unwrap(),
            origin: None,
            license: None,
            created_at: chrono::DateTime::UNIX_EPOCH,
        };
        let of = |base: &BaseModel, quantization, compute, adapter| fingerprint(base, (quantization, compute), adapter);
        assert_eq!(of(&base, Quantization::None, ServedCompute::Packed, None), "fp_010101010101_none");
        assert_eq!(of(&base, Quantization::Int8, ServedCompute::F32, None), "fp_010101010101_int8");
        let packed = of(&base, Quantization::Int8, ServedCompute::Packed, Some(digest(2)));
        assert_eq!(packed, "fp_010101010101_int8-packed_020202020202");
        base.architecture.gguf_blocks = Some(KeptBlocks::default());
        assert_eq!(of(&base, Quantization::None, ServedCompute::Packed, None), "fp_010101010101_gguf-packed");
        assert_eq!(of(&base, Quantization::None, ServedCompute::F32, None), "fp_010101010101_gguf");
        assert_eq!(of(&base, Quantization::Int8, ServedCompute::Packed, None), "fp_010101010101_int8-packed");
    }
}
