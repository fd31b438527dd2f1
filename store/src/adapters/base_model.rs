//! Base models: Hugging Face folders that were imported into this installation. One belongs to a project, which alone
//! may use it, or to the installation; of two with the same name, a project gets its own.

use std::collections::BTreeMap;

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    digest::Sha256,
    hub_origin::HubOrigin,
    id::{BaseModel as BaseModelKind, BaseModelId, JobId, ProjectId},
    run::Blob,
};
use chrono::{DateTime, Utc};
use sha2::Digest;
use sqlx::PgConnection;

use crate::{
    db, digests,
    error::{StoreError, json, to_json},
    files::{
        blob,
        objects::{Objects, blob_key},
    },
    ids,
    jobs::checkpoint,
};

/// The size limit of a base model's files other than weights; the largest known `tokenizer.json` is nearly as large.
pub const SMALL_BYTES: Bytes = Bytes::mib(32);

/// The constraint that keeps names unique in a project.
pub const NAME_KEY: &str = "base_model_name_key";

/// The constraint that keeps the names of the installation's models unique.
pub const INSTALLATION_NAME_KEY: &str = "base_model_installation_name_key";

/// The maximum number of jobs or models listed in [`Uses`].
const MOST_NAMED: i64 = 10;

/// A base model.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseModel {
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The project that it belongs to; `None`: the installation.
    pub project_id: Option<ProjectId>,
    /// The model's name.
    pub name: String,
    /// The digest of its files.
    pub digest: Sha256,
    /// The model's architecture.
    pub architecture: Architecture,
    /// The origin in a hub, as the user who imported it states; `None`: its files came from elsewhere.
    pub origin: Option<HubOrigin>,
    /// The licence, as it was read at the import; `None`: unknown.
    pub license: Option<String>,
    /// The time of the import.
    pub created_at: DateTime<Utc>,
}

/// The jobs, models and deployments that prevent a base model from being deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// Unfinished jobs of the calling project, at most 10.
    pub jobs: Vec<JobId>,
    /// Fine-tuned models of the calling project, at most 10.
    pub models: Vec<String>,
    /// The names of the calling project's deployments, at most 10.
    pub deployments: Vec<String>,
    /// The number of other projects' jobs, fine-tuned models and deployments.
    pub elsewhere: i64,
}

/// The row as SQL returns it.
struct Row {
    base_model_id: uuid::Uuid,
    project_id: Option<uuid::Uuid>,
    name: String,
    digest: String,
    architecture: serde_json::Value,
    origin: Option<serde_json::Value>,
    license: Option<String>,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for BaseModel {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            base_model_id: BaseModelId::new(row.base_model_id),
            project_id: row.project_id.map(ProjectId::new),
            name: row.name,
            digest: digests::sha256("base_model.digest", &row.digest)?,
            architecture: json("base_model.architecture", row.architecture)?,
            origin: row.origin.map(|origin| json("base_model.origin", origin)).transpose()?,
            license: row.license,
            created_at: row.created_at,
        })
    }
}

/// Returns the digest by which nodes cache a folder: SHA-256 over a line `<sha256>  <name>` per file, sorted by name,
/// as `sha256sum` prints.
#[must_use]
pub fn digest(files: &[Blob]) -> Sha256 {
    let mut lines: Vec<_> = files.iter().map(|file| (&file.name, file.sha256)).collect();
    lines.sort_unstable();
    let mut hasher = sha2::Sha256::new();
    for (name, sha256) in lines {
        hasher.update(format!("{sha256}  {name}\n"));
    }
    Sha256::from_digest(hasher.finalize().into())
}

/// A new base model, whose files are stored and checked.
#[derive(Debug, Clone, Copy)]
pub struct NewBaseModel<'a> {
    /// The name.
    pub name: &'a str,
    /// The architecture.
    pub architecture: &'a Architecture,
    /// The files.
    pub files: &'a [Blob],
    /// The origin in a hub.
    pub origin: Option<&'a HubOrigin>,
    /// The licence; `None`: unknown.
    pub license: Option<&'a str>,
}

/// Inserts a new base model of a project, or of the installation, for which `tx` must be its administrator's
/// ([`db::as_installation`]).
///
/// # Errors
/// [`StoreError::Conflict`] on [`NAME_KEY`] or [`INSTALLATION_NAME_KEY`]: the owner already has a model of this name.
pub async fn insert(
    tx: &mut PgConnection,
    owner: Option<ProjectId>,
    new: &NewBaseModel<'_>,
) -> Result<BaseModel, StoreError> {
    let NewBaseModel { name, architecture, files, origin, license } = *new;
    let row = sqlx::query_as!(
        Row,
        "insert into base_model (base_model_id, project_id, name, digest, architecture, origin, license)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning base_model_id, project_id, name, digest, architecture, origin, license, created_at",
        ids::id::<BaseModelKind>().uuid(),
        owner.map(|id| id.uuid()),
        name,
        digest(files).to_string(),
        to_json("base_model.architecture", architecture)?,
        origin.map(|origin| to_json("base_model.origin", origin)).transpose()?,
        license,
    )
    .fetch_one(&mut *tx)
    .await?;
    for file in files {
        sqlx::query!(
            "insert into base_model_file (base_model_id, name, sha256, bytes) values ($1, $2, $3, $4)",
            row.base_model_id,
            file.name,
            file.sha256.to_string(),
            file.bytes.to_i64(),
        )
        .execute(&mut *tx)
        .await?;
    }
    row.try_into()
}

/// Returns the base model with this ID, including a deleted one, for the jobs that were trained over it.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &mut PgConnection, id: BaseModelId) -> Result<BaseModel, StoreError> {
    sqlx::query_as!(
        Row,
        "select base_model_id, project_id, name, digest, architecture, origin, license, created_at from base_model
         where base_model_id = $1",
        id.uuid(),
    )
    .fetch_optional(db)
    .await?
    .ok_or(StoreError::NotFound("base model"))?
    .try_into()
}

/// Returns the base model that the project may use under this name: its own, or else the installation's.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_name(db: &mut PgConnection, project: ProjectId, name: &str) -> Result<Option<BaseModel>, StoreError> {
    sqlx::query_as!(
        Row,
        "select base_model_id, project_id, name, digest, architecture, origin, license, created_at from base_model
         where name = $2 and deleted_at is null and (project_id = $1 or project_id is null)
         order by project_id nulls last limit 1",
        project.uuid(),
        name,
    )
    .fetch_optional(db)
    .await?
    .map(BaseModel::try_from)
    .transpose()
}

/// Returns the base model of this name that this project, or else the installation, owns.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_owner(
    db: &mut PgConnection,
    owner: Option<ProjectId>,
    name: &str,
) -> Result<Option<BaseModel>, StoreError> {
    sqlx::query_as!(
        Row,
        "select base_model_id, project_id, name, digest, architecture, origin, license, created_at from base_model
         where name = $2 and deleted_at is null and project_id is not distinct from $1",
        owner.map(|id| id.uuid()),
        name,
    )
    .fetch_optional(db)
    .await?
    .map(BaseModel::try_from)
    .transpose()
}

/// Returns all base models that the project may use, by name; its own hides the installation's of the same name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(db: &mut PgConnection, project: ProjectId) -> Result<Vec<BaseModel>, StoreError> {
    sqlx::query_as!(
        Row,
        "select distinct on (name) base_model_id, project_id, name, digest, architecture, origin, license, created_at
         from base_model where deleted_at is null and (project_id = $1 or project_id is null)
         order by name, project_id nulls last",
        project.uuid(),
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(BaseModel::try_from)
    .collect()
}

/// Checks, after a row that names this base model was written in `tx`, that the base model was not deleted meanwhile.
///
/// # Errors
/// [`StoreError::NotFound`].
pub(crate) async fn still_there(tx: &mut PgConnection, id: BaseModelId) -> Result<(), StoreError> {
    let there = sqlx::query_scalar!(
        r#"select exists (select from base_model where base_model_id = $1 and deleted_at is null) as "there!""#,
        id.uuid(),
    )
    .fetch_one(tx)
    .await?;
    if there { Ok(()) } else { Err(StoreError::NotFound("model")) }
}

/// Deletes a base model of `project`, or of the installation, for which `tx` must be its administrator's, unless it is
/// in use: then nothing changes, and its uses are returned. Its content and the checkpoints of ended jobs over it are
/// discarded.
///
/// # Errors
/// [`StoreError::NotFound`]: it was deleted before. [`StoreError::Database`].
pub async fn delete(tx: &mut PgConnection, project: ProjectId, id: BaseModelId) -> Result<Option<Uses>, StoreError> {
    // A transaction that is about to name it also holds the row lock until it ends.
    let held =
        sqlx::query!("select from base_model where base_model_id = $1 and deleted_at is null for update", id.uuid())
            .fetch_optional(&mut *tx)
            .await?;
    if held.is_none() {
        return Err(StoreError::NotFound("base model"));
    }
    // Any project may have used the installation's model.
    db::as_platform(tx).await?;
    let uses = uses(tx, project, id).await?;
    if uses.is_none() {
        let jobs = sqlx::query_scalar!(
            "select distinct job_id from checkpoint join job using (job_id) where base_model_id = $1",
            id.uuid(),
        )
        .fetch_all(&mut *tx)
        .await?;
        for job in jobs {
            checkpoint::delete_all(tx, JobId::new(job)).await?;
        }
        let digests =
            sqlx::query_scalar!("delete from base_model_file where base_model_id = $1 returning sha256", id.uuid())
                .fetch_all(&mut *tx)
                .await?;
        let digests = digests.iter().map(|text| digests::sha256("base_model_file.sha256", text));
        let digests = digests.collect::<Result<Vec<_>, _>>()?;
        blob::discard_digests(tx, &digests).await?;
    }
    db::as_application(tx).await?;
    if uses.is_none() {
        sqlx::query!("update base_model set deleted_at = now() where base_model_id = $1", id.uuid())
            .execute(tx)
            .await?;
    }
    Ok(uses)
}

async fn uses(db: &mut PgConnection, project: ProjectId, id: BaseModelId) -> Result<Option<Uses>, StoreError> {
    let jobs = sqlx::query_scalar!(
        "select job_id from job where base_model_id = $1 and project_id = $2
             and state not in ('succeeded', 'failed', 'cancelled') order by job_id limit $3",
        id.uuid(),
        project.uuid(),
        MOST_NAMED,
    )
    .fetch_all(&mut *db)
    .await?;
    let models = sqlx::query_scalar!(
        "select model_name from adapter_version where base_model_id = $1 and project_id = $2 and deleted_at is null
         order by adapter_version_id limit $3",
        id.uuid(),
        project.uuid(),
        MOST_NAMED,
    )
    .fetch_all(&mut *db)
    .await?;
    let deployments = sqlx::query_scalar!(
        "select d.name from deployment as d join project as p using (project_id)
         where $1 in (d.base_model_id, d.draft_model_id) and d.project_id = $2 and p.archived_at is null
         order by d.deployment_id limit $3",
        id.uuid(),
        project.uuid(),
        MOST_NAMED,
    )
    .fetch_all(&mut *db)
    .await?;
    let elsewhere = sqlx::query_scalar!(
        r#"select (select count(*) from job where base_model_id = $1 and project_id <> $2
               and state not in ('succeeded', 'failed', 'cancelled'))
           + (select count(*) from adapter_version where base_model_id = $1 and project_id <> $2
               and deleted_at is null)
           + (select count(*) from deployment as d join project as p using (project_id)
               where $1 in (d.base_model_id, d.draft_model_id) and d.project_id <> $2 and p.archived_at is null)
               as "count!""#,
        id.uuid(),
        project.uuid(),
    )
    .fetch_one(db)
    .await?;
    let uses = Uses { jobs: jobs.into_iter().map(JobId::new).collect(), models, deployments, elsewhere };
    Ok((uses != Uses::default()).then_some(uses))
}

/// Returns the files of a base model, by name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn files(db: &mut PgConnection, id: BaseModelId) -> Result<Vec<Blob>, StoreError> {
    let rows = sqlx::query!(
        "select name, sha256, bytes from base_model_file where base_model_id = $1 order by name",
        id.uuid(),
    )
    .fetch_all(db)
    .await?;
    let files = rows.into_iter().map(|row| {
        let sha256 = digests::sha256("base_model_file.sha256", &row.sha256)?;
        Ok(Blob { name: row.name, sha256, bytes: Bytes::from_i64(row.bytes) })
    });
    files.collect()
}

/// Returns the content of a base model's files with these names, checked against their digests. Files over
/// [`SMALL_BYTES`] are ignored.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Object`], [`StoreError::Digest`].
pub async fn small_files(
    objects: &Objects,
    files: &[Blob],
    names: &[&str],
) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let mut contents = BTreeMap::new();
    for file in files.iter().filter(|file| names.contains(&file.name.as_str()) && file.bytes <= SMALL_BYTES) {
        let content = objects.get_whole(&blob_key(file.sha256)).await?;
        let found = Sha256::from_digest(sha2::Sha256::digest(&content).into());
        if found != file.sha256 {
            return Err(StoreError::Digest { name: file.name.clone(), wanted: file.sha256, found });
        }
        contents.insert(file.name.clone(), content.into());
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_the_files() {
        let file = |name: &str, byte: u8| {
            let sha256 = Sha256::from_digest([byte; 32]);
            Blob { name: name.into(), sha256, bytes: Bytes(1) }
        };
        let (a, b) = (file("config.json", 0xaa), file("tokenizer.json", 0xbb));
        assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
        assert_ne!(digest(&[a.clone(), b.clone()]), digest(&[a, file("tokenizer.json", 0xcc)]));
    }
}
