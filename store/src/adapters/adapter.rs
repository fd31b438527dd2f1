//! Adapter versions: what jobs gave and imports brought. Immutable; written by [`crate::adapters::adapter_version`].
//!
//! A version belongs to a lineage, the adapter, in which it has a number; aliases of the adapter name versions and move
//! ([`crate::adapters::adapter_alias`]). A deleted version is out of the user's sight at once; its row stays, since the job that made
//! it names it. One that a job still needs to begin with, or that an alias names, cannot be deleted.

use attune_domain::{
    id::{AdapterId, AdapterVersionId, BaseModelId, JobId, ProjectId},
    run::Blob,
    spec::{AdapterSpec, Quantization},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    adapters::base_model::{self, BaseModel},
    error::{StoreError, json, quantization},
    files::blob,
    jobs::checkpoint::{self, NamedCheckpoint},
};

/// An adapter version, with the names of its base and of its lineage.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterVersion {
    /// Its id.
    pub adapter_version_id: AdapterVersionId,
    /// The lineage.
    pub adapter_id: AdapterId,
    /// As users name that.
    pub adapter: String,
    /// Its number there, from 1.
    pub version: i32,
    /// Names its content.
    pub digest: String,
    /// What it corrects.
    pub base_model_id: BaseModelId,
    /// As users name that.
    pub base_model: String,
    /// The quantization of the base that it was trained over, and is served over.
    pub quantization: Quantization,
    /// What made it; `None`: an import.
    pub job_id: Option<JobId>,
    /// As users name it: `ft:base:project:suffix:id`.
    pub model_name: String,
    /// Its shape.
    pub spec: AdapterSpec,
    /// A PEFT folder.
    pub files: Vec<Blob>,
    /// `attune_manifest.json`; `None`: the version is older than it.
    pub manifest: Option<String>,
    /// Of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<String>,
    /// The aliases that name it now, sorted.
    pub aliases: Vec<String>,
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
    /// A checkpoint of one of the project's jobs.
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

    /// The quantization of the base that an adapter was trained over; `None`: the base itself is asked, and no adapter says.
    #[must_use]
    pub const fn quantization(&self) -> Option<Quantization> {
        match self {
            Self::Base(_) => None,
            Self::Tuned(adapter) => Some(adapter.quantization),
            Self::Checkpoint(named) => Some(named.quantization),
        }
    }

    /// Its own name, whatever alias it was found by.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Base(base) => &base.name,
            Self::Tuned(adapter) => &adapter.model_name,
            Self::Checkpoint(named) => &named.model_name,
        }
    }
}

/// How users name a version.
#[derive(Debug, Clone, Copy, Default)]
struct Filter<'a> {
    id: Option<AdapterVersionId>,
    model_name: Option<&'a str>,
    adapter: Option<&'a str>,
    version: Option<i32>,
    alias: Option<&'a str>,
    after: Option<AdapterVersionId>,
}

impl<'a> Filter<'a> {
    /// `adapter_…`, `ft:…`, `house@prod`, `house@2`, or `house`, the newest.
    fn of(reference: &'a str) -> Self {
        if let Ok(id) = reference.parse() {
            return Self { id: Some(id), ..Self::default() };
        }
        match reference.split_once('@') {
            Some((name, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => {
                // What is no number of a version names none.
                Self { adapter: Some(name), version: Some(number.parse().unwrap_or(0)), ..Self::default() }
            }
            Some((name, alias)) => Self { adapter: Some(name), alias: Some(alias), ..Self::default() },
            None if reference.starts_with("ft:") => Self { model_name: Some(reference), ..Self::default() },
            None => Self { adapter: Some(reference), ..Self::default() },
        }
    }
}

/// A row as SQL has it.
struct Row {
    adapter_version_id: uuid::Uuid,
    adapter_id: uuid::Uuid,
    adapter: String,
    version: i32,
    digest: String,
    base_model_id: uuid::Uuid,
    base_model: String,
    quantization: String,
    job_id: Option<uuid::Uuid>,
    model_name: String,
    shape: serde_json::Value,
    files: serde_json::Value,
    manifest: Option<String>,
    chat_template_sha256: Option<String>,
    aliases: Vec<String>,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for AdapterVersion {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            adapter_version_id: AdapterVersionId::new(row.adapter_version_id),
            adapter_id: AdapterId::new(row.adapter_id),
            adapter: row.adapter,
            version: row.version,
            digest: row.digest,
            base_model_id: BaseModelId::new(row.base_model_id),
            base_model: row.base_model,
            quantization: quantization("adapter_version.quantization", &row.quantization)?,
            job_id: row.job_id.map(JobId::new),
            model_name: row.model_name,
            spec: json("adapter_version.shape", row.shape)?,
            files: json("adapter_version.files", row.files)?,
            manifest: row.manifest,
            chat_template_sha256: row.chat_template_sha256,
            aliases: row.aliases,
            created_at: row.created_at,
        })
    }
}

/// Newest first, so the first of a lineage is its newest version.
async fn select(
    db: &mut PgConnection,
    project: ProjectId,
    filter: Filter<'_>,
    limit: i64,
) -> Result<Vec<AdapterVersion>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select a.adapter_version_id, a.adapter_id, l.name as adapter, a.version, a.digest, a.base_model_id,
             b.name as base_model, a.quantization, a.job_id, a.model_name, a.shape, a.files, a.manifest, a.chat_template_sha256,
             array(select s.alias from adapter_alias s where s.adapter_version_id = a.adapter_version_id
                 order by s.alias) as "aliases!", a.created_at
         from adapter_version a join base_model b using (base_model_id) join adapter l using (adapter_id)
         where a.project_id = $1 and a.deleted_at is null
             and ($2::uuid is null or a.adapter_version_id = $2) and ($3::text is null or a.model_name = $3)
             and ($4::text is null or l.name = $4) and ($5::integer is null or a.version = $5)
             and ($6::text is null or exists (select from adapter_alias s
                 where s.adapter_version_id = a.adapter_version_id and s.alias = $6))
             and ($7::uuid is null or a.adapter_version_id < $7)
         order by a.adapter_version_id desc limit $8"#,
        project.uuid(),
        filter.id.map(|id| id.uuid()),
        filter.model_name,
        filter.adapter,
        filter.version,
        filter.alias,
        filter.after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(AdapterVersion::try_from).collect()
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
    let found = select(db, project, Filter { id: Some(id), ..Filter::default() }, 1).await?.pop();
    found.ok_or(StoreError::NotFound("adapter version"))
}

/// The project's adapter version that users name so: by its id, its model's name, an alias (`house@prod`), a number
/// (`house@2`), or the name of its lineage, whose newest version is meant.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted.
pub async fn find(db: &mut PgConnection, project: ProjectId, reference: &str) -> Result<AdapterVersion, StoreError> {
    select(db, project, Filter::of(reference), 1).await?.pop().ok_or(StoreError::NotFound("adapter"))
}

/// The project's adapter versions, newest first: those behind `after`, at most `limit`, and only those of the lineage
/// `adapter`, if one is given.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: Option<&str>,
    after: Option<AdapterVersionId>,
    limit: i64,
) -> Result<Vec<AdapterVersion>, StoreError> {
    select(db, project, Filter { adapter, after, ..Filter::default() }, limit).await
}

/// The project's adapter version that users name so, that something new is about to name. It cannot be deleted until the
/// transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted.
pub async fn lock(tx: &mut PgConnection, project: ProjectId, reference: &str) -> Result<AdapterVersion, StoreError> {
    let id = find(tx, project, reference).await?.adapter_version_id;
    sqlx::query!("select from adapter_version where adapter_version_id = $1 for share", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    get(tx, project, id).await
}

/// The files of an adapter version that a job begins with.
pub(crate) async fn files(db: &mut PgConnection, id: AdapterVersionId) -> Result<Vec<Blob>, StoreError> {
    let files = sqlx::query_scalar!("select files from adapter_version where adapter_version_id = $1", id.uuid())
        .fetch_optional(db)
        .await?
        .ok_or(StoreError::NotFound("adapter version"))?;
    json("adapter_version.files", files)
}

/// Who still needs an adapter version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needed {
    /// A job that has not ended begins with it.
    Job(JobId),
    /// An alias names it: `house@prod`.
    Alias(String),
}

/// Takes an adapter version out of the user's sight and lets its content and its job's checkpoints go, unless somebody
/// needs it: then nothing changes, and who does is returned.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none that is named so, or it was deleted before.
pub async fn delete(tx: &mut PgConnection, project: ProjectId, reference: &str) -> Result<Option<Needed>, StoreError> {
    let id = find(tx, project, reference).await?.adapter_version_id;
    sqlx::query!("select from adapter_version where adapter_version_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    // Statements of their own, so that they see what ended while the lock was waited for.
    let version = get(tx, project, id).await?;
    let needed_by = sqlx::query_scalar!(
        "select job_id from job where continue_from = $1 and state not in ('succeeded', 'failed', 'cancelled') limit 1",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(job) = needed_by {
        return Ok(Some(Needed::Job(JobId::new(job))));
    }
    if let Some(alias) = version.aliases.first() {
        return Ok(Some(Needed::Alias(format!("{}@{alias}", version.adapter))));
    }
    sqlx::query!("update adapter_version set deleted_at = now() where adapter_version_id = $1", id.uuid())
        .execute(&mut *tx)
        .await?;
    let digests: Vec<String> = version.files.into_iter().map(|file| file.sha256).collect();
    blob::discard_digests(tx, &digests).await?;
    if let Some(job) = version.job_id {
        checkpoint::delete_all(tx, job).await?;
    }
    Ok(None)
}

/// What `name` stands for in this project: a base model, one of its own tuned ones by its name, an alias (`house@prod`) or
/// a number (`house@2`), or a checkpoint of one; never another project's.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn resolve(db: &mut PgConnection, project: ProjectId, name: &str) -> Result<Model, StoreError> {
    if let Some(base) = base_model::by_name(&mut *db, project, name).await? {
        return Ok(Model::Base(base));
    }
    // A lineage alone, or an id, is no model's name.
    let filter = Filter::of(name);
    if filter.model_name.is_none() && filter.alias.is_none() && filter.version.is_none() {
        return Err(StoreError::NotFound("model"));
    }
    if let Some(tuned) = select(&mut *db, project, filter, 1).await?.pop() {
        return Ok(Model::Tuned(tuned));
    }
    checkpoint::by_model_name(db, project, name).await?.map(Model::Checkpoint).ok_or(StoreError::NotFound("model"))
}
