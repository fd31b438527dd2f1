//! Adapter versions, published by jobs or imported. Immutable; written by [`crate::adapters::adapter_version`].
//!
//! A version belongs to an adapter, its lineage, in which it has a number; aliases of the adapter name versions and
//! move ([`crate::adapters::adapter_alias`]). A deleted version is hidden from users immediately; its row stays, since
//! the job that published it names it. A version that an unfinished job continues, that an alias names, or that is the
//! canary or the shadow of one, cannot be deleted.

use attune_domain::{
    digest::Sha256,
    id::{AdapterId, AdapterVersionId, BaseModelId, JobId, ProjectId},
    run::Blob,
    spec::{AdapterSpec, Quantization},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    adapters::base_model::{self, BaseModel},
    digests::sha256,
    error::{StoreError, json, quantization},
    files::blob,
    jobs::checkpoint::{self, NamedCheckpoint},
};

/// An adapter version, with the names of its base and its adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterVersion {
    /// The version's ID; it prints as `adapter_…`.
    pub adapter_version_id: AdapterVersionId,
    /// The adapter's ID; it prints as `lineage_…`.
    pub adapter_id: AdapterId,
    /// The adapter's name.
    pub adapter: String,
    /// The version's number in the adapter, from 1.
    pub version: i32,
    /// The digest of the version's files.
    pub digest: Sha256,
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The base model's name.
    pub base_model: String,
    /// The quantization of the base that it was trained over and is served over.
    pub quantization: Quantization,
    /// The job that published it; `None`: an import.
    pub job_id: Option<JobId>,
    /// The model's name: `ft:base:project:suffix:id`.
    pub model_name: String,
    /// The adapter's configuration: rank, alpha and target modules.
    pub spec: AdapterSpec,
    /// The files of a PEFT folder.
    pub files: Vec<Blob>,
    /// The text of `attune_manifest.json`; `None`: the version predates it.
    pub manifest: Option<String>,
    /// The SHA-256 of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<Sha256>,
    /// The aliases that name it, sorted.
    pub aliases: Vec<String>,
    /// The time of publication.
    pub created_at: DateTime<Utc>,
}

/// A model, resolved by name.
#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    /// A base model.
    Base(BaseModel),
    /// A fine-tuned model of the project.
    Tuned(AdapterVersion),
    /// A checkpoint of one of the project's jobs.
    Checkpoint(NamedCheckpoint),
}

impl Model {
    /// Returns the ID of the base model.
    #[must_use]
    pub const fn base_model_id(&self) -> BaseModelId {
        match self {
            Self::Base(base) => base.base_model_id,
            Self::Tuned(adapter) => adapter.base_model_id,
            Self::Checkpoint(named) => named.base_model_id,
        }
    }

    /// Returns the quantization of the base that the adapter was trained over; `None` for a base model, which has no
    /// adapter.
    #[must_use]
    pub const fn quantization(&self) -> Option<Quantization> {
        match self {
            Self::Base(_) => None,
            Self::Tuned(adapter) => Some(adapter.quantization),
            Self::Checkpoint(named) => Some(named.quantization),
        }
    }

    /// Returns the model's own name, whatever alias it was found by.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Base(base) => &base.name,
            Self::Tuned(adapter) => &adapter.model_name,
            Self::Checkpoint(named) => &named.model_name,
        }
    }
}

/// The conditions of a query for versions.
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
    /// Parses a reference: `adapter_…`, `ft:…`, `house@prod`, `house@2`, or `house` for the newest version.
    fn of(reference: &'a str) -> Self {
        if let Ok(id) = reference.parse() {
            return Self { id: Some(id), ..Self::default() };
        }
        match reference.split_once('@') {
            Some((name, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => {
                // An invalid version number matches no version.
                Self { adapter: Some(name), version: Some(number.parse().unwrap_or(0)), ..Self::default() }
            }
            Some((name, alias)) => Self { adapter: Some(name), alias: Some(alias), ..Self::default() },
            None if reference.starts_with("ft:") => Self { model_name: Some(reference), ..Self::default() },
            None => Self { adapter: Some(reference), ..Self::default() },
        }
    }
}

/// The row as SQL returns it.
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
            digest: sha256("adapter_version.digest", &row.digest)?,
            base_model_id: BaseModelId::new(row.base_model_id),
            base_model: row.base_model,
            quantization: quantization("adapter_version.quantization", &row.quantization)?,
            job_id: row.job_id.map(JobId::new),
            model_name: row.model_name,
            spec: json("adapter_version.shape", row.shape)?,
            files: json("adapter_version.files", row.files)?,
            manifest: row.manifest,
            chat_template_sha256: row.chat_template_sha256.as_deref().map(template).transpose()?,
            aliases: row.aliases,
            created_at: row.created_at,
        })
    }
}

fn template(text: &str) -> Result<Sha256, StoreError> {
    sha256("adapter_version.chat_template_sha256", text)
}

/// Returns versions, newest first, so the first one of an adapter is its newest.
async fn select(
    db: &mut PgConnection,
    project: ProjectId,
    filter: Filter<'_>,
    limit: i64,
) -> Result<Vec<AdapterVersion>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select a.adapter_version_id, a.adapter_id, l.name as adapter, a.version, a.digest, a.base_model_id,
             b.name as base_model, a.quantization, a.job_id, a.model_name, a.shape, a.files, a.manifest,
             a.chat_template_sha256, a.created_at,
             array(select s.alias from adapter_alias s where s.adapter_version_id = a.adapter_version_id
                 order by s.alias) as "aliases!"
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

/// Returns the project's adapter version with this ID.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted.
pub async fn get(
    db: &mut PgConnection,
    project: ProjectId,
    id: AdapterVersionId,
) -> Result<AdapterVersion, StoreError> {
    let found = select(db, project, Filter { id: Some(id), ..Filter::default() }, 1).await?.pop();
    found.ok_or(StoreError::NotFound("adapter version"))
}

/// Returns the project's adapter version by its ID, its model name, an alias (`house@prod`), a number (`house@2`), or
/// the name of its adapter, which selects the newest version.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted.
pub async fn find(db: &mut PgConnection, project: ProjectId, reference: &str) -> Result<AdapterVersion, StoreError> {
    select(db, project, Filter::of(reference), 1).await?.pop().ok_or(StoreError::NotFound("adapter"))
}

/// Returns the project's adapter versions, newest first: at most `limit` after `after`, and only those of `adapter` if
/// one is given.
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

/// Returns the project's adapter version by reference, for a new row that will name it. It cannot be deleted until the
/// transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted.
pub async fn lock(tx: &mut PgConnection, project: ProjectId, reference: &str) -> Result<AdapterVersion, StoreError> {
    let id = find(tx, project, reference).await?.adapter_version_id;
    sqlx::query!("select from adapter_version where adapter_version_id = $1 for share", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    get(tx, project, id).await
}

/// Returns the files of an adapter version that a job continues.
pub(crate) async fn files(db: &mut PgConnection, id: AdapterVersionId) -> Result<Vec<Blob>, StoreError> {
    let files = sqlx::query_scalar!("select files from adapter_version where adapter_version_id = $1", id.uuid())
        .fetch_optional(db)
        .await?
        .ok_or(StoreError::NotFound("adapter version"))?;
    json("adapter_version.files", files)
}

/// A reason why an adapter version cannot be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needed {
    /// A job that has not ended continues it.
    Job(JobId),
    /// An alias names it: `house@prod`.
    Alias(String),
    /// The version is the canary or the shadow of this alias.
    Trial(String),
}

/// Deletes an adapter version: hides it and discards its content and its job's checkpoints, unless it is in use. If so,
/// nothing changes, and the user of the version is returned.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted before.
pub async fn delete(tx: &mut PgConnection, project: ProjectId, reference: &str) -> Result<Option<Needed>, StoreError> {
    let id = find(tx, project, reference).await?.adapter_version_id;
    sqlx::query!("select from adapter_version where adapter_version_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    // Separate statements, so that they see transactions that ended while this one waited for the lock.
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
    let trial = sqlx::query_scalar!(
        r#"select alias as "alias!" from adapter_canary where adapter_version_id = $1 and state = 'running'
           union all select alias from adapter_shadow where adapter_version_id = $1 and ended_at is null limit 1"#,
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(alias) = trial {
        return Ok(Some(Needed::Trial(format!("{}@{alias}", version.adapter))));
    }
    sqlx::query!("update adapter_version set deleted_at = now() where adapter_version_id = $1", id.uuid())
        .execute(&mut *tx)
        .await?;
    sqlx::query!("delete from adapter_prefetch where adapter_version_id = $1", id.uuid()).execute(&mut *tx).await?;
    let digests: Vec<Sha256> = version.files.iter().map(|file| file.sha256).collect();
    blob::discard_digests(tx, &digests).await?;
    if let Some(job) = version.job_id {
        checkpoint::delete_all(tx, job).await?;
    }
    Ok(None)
}

/// Resolves a model's name in this project: a base model; a fine-tuned model of the project by its name, an alias
/// (`house@prod`) or a number (`house@2`); or a checkpoint of one. Never another project's.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn resolve(db: &mut PgConnection, project: ProjectId, name: &str) -> Result<Model, StoreError> {
    if let Some(base) = base_model::by_name(&mut *db, project, name).await? {
        return Ok(Model::Base(base));
    }
    // An adapter's name alone, or an ID, is no model name.
    let filter = Filter::of(name);
    if filter.model_name.is_none() && filter.alias.is_none() && filter.version.is_none() {
        return Err(StoreError::NotFound("model"));
    }
    if let Some(tuned) = select(&mut *db, project, filter, 1).await?.pop() {
        return Ok(Model::Tuned(tuned));
    }
    checkpoint::by_model_name(db, project, name).await?.map(Model::Checkpoint).ok_or(StoreError::NotFound("model"))
}
