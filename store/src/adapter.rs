//! Adapter versions: what jobs gave. Immutable; written by `run::take_report` when a run publishes.
//!
//! A deleted one is out of the user's sight at once; its row stays, since the job that made it names it. One that a job
//! still needs to begin with cannot be deleted.

use attune_domain::{
    id::{AdapterVersionId, BaseModelId, JobId, ProjectId},
    run::Blob,
    spec::AdapterSpec,
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    base_model::{self, BaseModel},
    blob,
    checkpoint::{self, NamedCheckpoint},
    error::{StoreError, json},
    job,
};

/// An adapter version, with the name of its base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterVersion {
    /// Its id.
    pub adapter_version_id: AdapterVersionId,
    /// What it corrects.
    pub base_model_id: BaseModelId,
    /// As users name that.
    pub base_model: String,
    /// What made it.
    pub job_id: JobId,
    /// As users name it: `ft:base:project:suffix:id`.
    pub model_name: String,
    /// A PEFT folder.
    pub files: Vec<Blob>,
    /// Of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<String>,
    /// When it was published.
    pub created_at: DateTime<Utc>,
}

/// What a model's name stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    /// A base model itself.
    Base(BaseModel),
    /// One of the project's own.
    Tuned(AdapterVersion),
    /// A state on the way to one of the project's own.
    Checkpoint(NamedCheckpoint),
}

impl Model {
    /// The base that answers, alone or corrected.
    #[must_use]
    pub const fn base_model_id(&self) -> BaseModelId {
        match self {
            Self::Base(base) => base.base_model_id,
            Self::Tuned(adapter) => adapter.base_model_id,
            Self::Checkpoint(named) => named.base_model_id,
        }
    }
}

/// A row as SQL has it.
struct Row {
    adapter_version_id: uuid::Uuid,
    base_model_id: uuid::Uuid,
    base_model: String,
    job_id: uuid::Uuid,
    model_name: String,
    files: serde_json::Value,
    chat_template_sha256: Option<String>,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for AdapterVersion {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            adapter_version_id: AdapterVersionId::new(row.adapter_version_id),
            base_model_id: BaseModelId::new(row.base_model_id),
            base_model: row.base_model,
            job_id: JobId::new(row.job_id),
            model_name: row.model_name,
            files: json("adapter_version.files", row.files)?,
            chat_template_sha256: row.chat_template_sha256,
            created_at: row.created_at,
        })
    }
}

/// The project's adapter version of this id.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted.
pub async fn get(
    db: &mut PgConnection,
    project: ProjectId,
    id: AdapterVersionId,
) -> Result<AdapterVersion, StoreError> {
    sqlx::query_as!(
        Row,
        "select a.adapter_version_id, a.base_model_id, b.name as base_model, a.job_id, a.model_name, a.files,
                a.chat_template_sha256, a.created_at
         from adapter_version a join base_model b using (base_model_id)
         where a.adapter_version_id = $1 and a.project_id = $2 and a.deleted_at is null",
        id.uuid(),
        project.uuid(),
    )
    .fetch_optional(db)
    .await?
    .ok_or(StoreError::NotFound("adapter version"))?
    .try_into()
}

/// The project's adapter version of this model name, if there is one.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_model_name(
    db: &mut PgConnection,
    project: ProjectId,
    name: &str,
) -> Result<Option<AdapterVersion>, StoreError> {
    sqlx::query_as!(
        Row,
        "select a.adapter_version_id, a.base_model_id, b.name as base_model, a.job_id, a.model_name, a.files,
                a.chat_template_sha256, a.created_at
         from adapter_version a join base_model b using (base_model_id)
         where a.model_name = $1 and a.project_id = $2 and a.deleted_at is null",
        name,
        project.uuid(),
    )
    .fetch_optional(db)
    .await?
    .map(AdapterVersion::try_from)
    .transpose()
}

/// The project's adapter versions, newest first: those behind `after`, at most `limit`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    after: Option<AdapterVersionId>,
    limit: i64,
) -> Result<Vec<AdapterVersion>, StoreError> {
    sqlx::query_as!(
        Row,
        "select a.adapter_version_id, a.base_model_id, b.name as base_model, a.job_id, a.model_name, a.files,
                a.chat_template_sha256, a.created_at
         from adapter_version a join base_model b using (base_model_id)
         where a.project_id = $1 and a.deleted_at is null and ($2::uuid is null or a.adapter_version_id < $2)
         order by a.adapter_version_id desc
         limit $3",
        project.uuid(),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(AdapterVersion::try_from)
    .collect()
}

/// The project's adapter version of this id or model name, that a new job is about to name. It cannot be deleted until
/// the transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted.
pub async fn lock_for_job(
    tx: &mut PgConnection,
    project: ProjectId,
    named: &str,
) -> Result<AdapterVersion, StoreError> {
    let id: AdapterVersionId = match named.parse() {
        Ok(id) => id,
        Err(_) => {
            let named = by_model_name(tx, project, named).await?.ok_or(StoreError::NotFound("adapter version"))?;
            named.adapter_version_id
        }
    };
    sqlx::query!("select from adapter_version where adapter_version_id = $1 for share", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    get(tx, project, id).await
}

/// The shape of an adapter version: that of the job which made it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn spec(db: &mut PgConnection, version: &AdapterVersion) -> Result<AdapterSpec, StoreError> {
    Ok(job::load(db, version.job_id).await?.spec.adapter)
}

/// The files of an adapter version that a job begins with.
pub(crate) async fn files(db: &mut PgConnection, id: AdapterVersionId) -> Result<Vec<Blob>, StoreError> {
    let files = sqlx::query_scalar!("select files from adapter_version where adapter_version_id = $1", id.uuid())
        .fetch_optional(db)
        .await?
        .ok_or(StoreError::NotFound("adapter version"))?;
    json("adapter_version.files", files)
}

/// Takes an adapter version out of the user's sight and lets its content and its job's checkpoints go, unless a job that has not ended begins with
/// it: then nothing changes and that job is returned.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none of this name, or it was deleted before.
pub async fn delete(tx: &mut PgConnection, project: ProjectId, model_name: &str) -> Result<Option<JobId>, StoreError> {
    let version = by_model_name(tx, project, model_name).await?.ok_or(StoreError::NotFound("model"))?;
    let id = version.adapter_version_id;
    sqlx::query!("select from adapter_version where adapter_version_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    // A statement of its own, so that it sees jobs whose transactions ended while the lock was waited for.
    let needed_by = sqlx::query_scalar!(
        "select job_id from job where continue_from = $1 and state not in ('succeeded', 'failed', 'cancelled') limit 1",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(job) = needed_by {
        return Ok(Some(JobId::new(job)));
    }
    sqlx::query!("update adapter_version set deleted_at = now() where adapter_version_id = $1", id.uuid(),)
        .execute(&mut *tx)
        .await?;
    let digests: Vec<String> = version.files.into_iter().map(|file| file.sha256).collect();
    blob::discard_digests(tx, &digests).await?;
    checkpoint::delete_all(tx, version.job_id).await?;
    Ok(None)
}

/// What `name` stands for in this project: a base model, or one of its own tuned ones, or a checkpoint of one; never
/// another project's.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn resolve(db: &mut PgConnection, project: ProjectId, name: &str) -> Result<Model, StoreError> {
    if let Some(base) = base_model::by_name(&mut *db, name).await? {
        return Ok(Model::Base(base));
    }
    if let Some(tuned) = by_model_name(&mut *db, project, name).await? {
        return Ok(Model::Tuned(tuned));
    }
    checkpoint::by_model_name(db, project, name).await?.map(Model::Checkpoint).ok_or(StoreError::NotFound("model"))
}
