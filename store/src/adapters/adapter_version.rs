//! Creation of an adapter's next version: a job publishes it, or a user imports it. One transaction writes its row, its
//! number in the adapter and its manifest.

use attune_domain::{
    digest::Sha256,
    event::EventType,
    id::{Adapter as AdapterKind, AdapterId, AdapterVersionId, JobId, ProjectId},
    manifest::Origin,
    run::Blob,
    spec::{AdapterSpec, Quantization},
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    adapters::{
        adapter::{self, AdapterVersion},
        base_model::{self, BaseModel},
        manifest, model_name,
    },
    error::{StoreError, to_json},
    ids,
    jobs::job::Job,
    webhooks::outbox,
};

/// A new version; its objects are already stored and checked.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// The project's ID.
    pub project_id: ProjectId,
    /// The name of its adapter.
    pub adapter: String,
    /// The base model.
    pub base: BaseModel,
    /// The quantization of the base that it was trained over.
    pub quantization: Quantization,
    /// The job that publishes it; `None`: an import.
    pub job_id: Option<JobId>,
    /// The suffix in the model's name.
    pub suffix: Option<String>,
    /// The adapter's configuration: rank, alpha and target modules.
    pub spec: AdapterSpec,
    /// The files of a PEFT folder.
    pub files: Vec<Blob>,
    /// The SHA-256 of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<Sha256>,
    /// The provenance in the manifest.
    pub origin: Origin,
}

/// Inserts the adapter's next version.
///
/// # Errors
/// [`StoreError::NotFound`]: its base was deleted meanwhile. [`StoreError::Database`].
pub async fn insert(tx: &mut PgConnection, new: NewVersion) -> Result<AdapterVersion, StoreError> {
    let adapter_id = lineage(tx, new.project_id, &new.adapter).await?;
    // The adapter is locked, so no other transaction can use the number.
    let version = sqlx::query_scalar!(
        r#"select coalesce(max(version), 0) + 1 as "version!" from adapter_version where adapter_id = $1"#,
        adapter_id.uuid(),
    )
    .fetch_one(&mut *tx)
    .await?;
    let project =
        sqlx::query!(r#"select name, now() as "now!" from project where project_id = $1"#, new.project_id.uuid(),)
            .fetch_one(&mut *tx)
            .await?;
    let id: AdapterVersionId = ids::id();
    let made = AdapterVersion {
        adapter_version_id: id,
        adapter_id,
        adapter: new.adapter,
        version,
        digest: base_model::digest(&new.files),
        base_model_id: new.base.base_model_id,
        model_name: match new.job_id {
            Some(job) => model_name::of_job(&new.base.name, &project.name, new.suffix.as_deref(), job),
            None => model_name::of_import(&new.base.name, &project.name, new.suffix.as_deref(), id),
        },
        base_model: new.base.name,
        quantization: new.quantization,
        job_id: new.job_id,
        spec: new.spec,
        files: new.files,
        manifest: None,
        chat_template_sha256: new.chat_template_sha256,
        aliases: Vec::new(),
        created_at: project.now,
    };
    let manifest = manifest::write(&made, new.base.digest, new.origin)?;
    write(tx, new.project_id, &made, &manifest).await?;
    base_model::still_there(tx, made.base_model_id).await?;
    let told = json!({ "id": id, "model": made.model_name, "fine_tuning_job": made.job_id });
    outbox::push(tx, new.project_id, EventType::AdapterVersionCreated, &told).await?;
    adapter::get(tx, new.project_id, id).await
}

async fn write(
    tx: &mut PgConnection,
    project: ProjectId,
    made: &AdapterVersion,
    manifest: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into adapter_version (adapter_version_id, project_id, adapter_id, version, digest, base_model_id,
             job_id, model_name, shape, files, manifest, chat_template_sha256, created_at, quantization)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        made.adapter_version_id.uuid(),
        project.uuid(),
        made.adapter_id.uuid(),
        made.version,
        made.digest.to_string(),
        made.base_model_id.uuid(),
        made.job_id.map(|id| id.uuid()),
        made.model_name,
        to_json("adapter_version.shape", &made.spec)?,
        to_json("adapter_version.files", &made.files)?,
        manifest,
        made.chat_template_sha256.map(|digest| digest.to_string()),
        made.created_at,
        made.quantization.name(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the ID of the adapter with this name, created if it does not exist, and locked until the transaction ends.
async fn lineage(tx: &mut PgConnection, project: ProjectId, name: &str) -> Result<AdapterId, StoreError> {
    sqlx::query!(
        "insert into adapter (adapter_id, project_id, name) values ($1, $2, $3)
         on conflict (project_id, name) do nothing",
        ids::id::<AdapterKind>().uuid(),
        project.uuid(),
        name,
    )
    .execute(&mut *tx)
    .await?;
    let id = sqlx::query_scalar!(
        "select adapter_id from adapter where project_id = $1 and name = $2 for update",
        project.uuid(),
        name,
    )
    .fetch_one(tx)
    .await?;
    Ok(AdapterId::new(id))
}

/// Returns the name of the adapter that a job publishes to: its suffix, or that of the version which it continues, or
/// the base's name.
pub(crate) async fn lineage_of(db: &mut PgConnection, job: &Job) -> Result<String, StoreError> {
    if let Some(suffix) = &job.suffix {
        return Ok(suffix.clone());
    }
    let Some(before) = job.continue_from else { return Ok(job.base_model.clone()) };
    let name = sqlx::query_scalar!(
        "select adapter.name from adapter_version join adapter using (adapter_id) where adapter_version_id = $1",
        before.uuid(),
    )
    .fetch_one(db)
    .await?;
    Ok(name)
}

/// Returns the number of the version with this content and quantization in the adapter, unless it was deleted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_digest(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    digest: Sha256,
    quantization: Quantization,
) -> Result<Option<i32>, StoreError> {
    Ok(sqlx::query_scalar!(
        "select version from adapter_version join adapter using (adapter_id)
         where adapter.project_id = $1 and adapter.name = $2 and digest = $3 and quantization = $4
             and deleted_at is null limit 1",
        project.uuid(),
        adapter,
        digest.to_string(),
        quantization.name(),
    )
    .fetch_optional(db)
    .await?)
}
