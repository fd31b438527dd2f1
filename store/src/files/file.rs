//! Files that users uploaded or the platform created. The content is stored in the object store under its digest; the
//! rows hold the metadata.
//!
//! A deleted or expired file is hidden from users immediately; its row stays, since jobs name it, and its content is
//! swept later. A file that an unfinished job uses cannot be deleted, and its content is kept beyond its expiry.

use attune_domain::{
    bytes::Bytes,
    dataset::RowFormat,
    digest::Sha256,
    id::{File as FileKind, FileId, JobId, ProjectId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    digests,
    error::{StoreError, named},
    files::blob,
    ids,
    sweep_batch::Batch,
};

/// A file's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The file's ID.
    pub file_id: FileId,
    /// The name given by the user.
    pub filename: String,
    /// The purpose, in OpenAI's terms.
    pub purpose: String,
    /// The length of the content.
    pub bytes: Bytes,
    /// The SHA-256 of the content; also the object's key.
    pub sha256: Sha256,
    /// The result of the dataset check; `None`: the file is not a dataset.
    pub dataset: Option<Dataset>,
    /// The time of the upload.
    pub created_at: DateTime<Utc>,
    /// The time at which it expires.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A file's dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The format of a row for training.
    pub format: RowFormat,
    /// The number of rows.
    pub rows: u64,
    /// The format of the uploaded file.
    pub source: Source,
    /// The rows as JSONL; `None`: the file itself is JSONL that trainers read.
    pub canonical: Option<Canonical>,
}

/// The format of a dataset as its user uploaded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The container: `jsonl`, `json`, `csv`, `tsv` or `parquet`.
    pub container: String,
    /// The compression: `gzip` or `zstd`.
    pub compression: Option<String>,
    /// The shape of a row: `chat`, `completion`, `text`, `alpaca`, `sharegpt` or `preference`.
    pub shape: String,
}

/// The content that trainers read, where it differs from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical {
    /// The SHA-256.
    pub sha256: Sha256,
    /// The length.
    pub bytes: Bytes,
}

impl File {
    /// Returns the digest of the content that trainers read.
    #[must_use]
    pub fn rows_sha256(&self) -> Sha256 {
        let canonical = self.dataset.as_ref().and_then(|dataset| dataset.canonical.as_ref());
        canonical.map_or(self.sha256, |canonical| canonical.sha256)
    }
}

/// A new file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field but the last is the one of File with the same name")]
pub struct NewFile {
    pub filename: String,
    pub purpose: String,
    pub bytes: Bytes,
    pub sha256: Sha256,
    pub dataset: Option<Dataset>,
    /// Seconds until it expires; `None`: it is kept until it is deleted.
    pub expires_after_seconds: Option<u32>,
}

/// A page of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The ID to list after.
    pub after: Option<FileId>,
    /// The maximum number of files.
    pub limit: i64,
    /// True for oldest first.
    pub ascending: bool,
}

/// The row as SQL returns it.
struct Row {
    file_id: uuid::Uuid,
    filename: String,
    purpose: String,
    bytes: i64,
    sha256: String,
    format: Option<String>,
    row_count: Option<i64>,
    container: Option<String>,
    compression: Option<String>,
    shape: Option<String>,
    rows_sha256: Option<String>,
    rows_bytes: Option<i64>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for File {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let dataset = row.format.map(|format| {
            Ok::<_, StoreError>(Dataset {
                format: named("file.format", &format, "format")?,
                rows: u64::try_from(row.row_count.unwrap_or(0)).unwrap_or(0),
                source: Source {
                    container: row.container.unwrap_or_default(),
                    compression: row.compression,
                    shape: row.shape.unwrap_or_default(),
                },
                canonical: row.rows_sha256.zip(row.rows_bytes).map(canonical).transpose()?,
            })
        });
        Ok(Self {
            file_id: FileId::new(row.file_id),
            filename: row.filename,
            purpose: row.purpose,
            bytes: Bytes::from_i64(row.bytes),
            sha256: digests::sha256("file.sha256", &row.sha256)?,
            dataset: dataset.transpose()?,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

fn canonical((sha256, bytes): (String, i64)) -> Result<Canonical, StoreError> {
    let sha256 = digests::sha256("file.rows_sha256", &sha256)?;
    Ok(Canonical { sha256, bytes: Bytes::from_i64(bytes) })
}

/// Returns the digests of a deleted file's content and of its rows, if they are other content.
fn dropped(sha256: &str, rows_sha256: Option<&str>) -> Result<Vec<Sha256>, StoreError> {
    let content = digests::sha256("file.sha256", sha256)?;
    let rows = rows_sha256.map(|text| digests::sha256("file.rows_sha256", text)).transpose()?;
    Ok(std::iter::once(content).chain(rows).collect())
}

/// Inserts a new file. Its objects must already be stored.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert(db: &mut PgConnection, project: ProjectId, new: NewFile) -> Result<File, StoreError> {
    let dataset = new.dataset.as_ref();
    let source = dataset.map(|dataset| &dataset.source);
    let canonical = dataset.and_then(|dataset| dataset.canonical.as_ref());
    let row = sqlx::query_as!(
        Row,
        "insert into file (file_id, project_id, filename, purpose, bytes, sha256, format, row_count, container,
             compression, shape, rows_sha256, rows_bytes, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
             now() + make_interval(secs => $14::bigint::double precision))
         returning file_id, filename, purpose, bytes, sha256, format, row_count, container, compression, shape,
             rows_sha256, rows_bytes, created_at, expires_at",
        ids::id::<FileKind>().uuid(),
        project.uuid(),
        new.filename,
        new.purpose,
        new.bytes.to_i64(),
        new.sha256.to_string(),
        dataset.map(|dataset| dataset.format.name()),
        dataset.map(|dataset| i64::try_from(dataset.rows).unwrap_or(i64::MAX)),
        source.map(|source| source.container.as_str()),
        source.and_then(|source| source.compression.as_deref()),
        source.map(|source| source.shape.as_str()),
        canonical.map(|canonical| canonical.sha256.to_string()),
        canonical.map(|canonical| canonical.bytes.to_i64()),
        new.expires_after_seconds.map(i64::from),
    )
    .fetch_one(db)
    .await?;
    row.try_into()
}

/// Returns the project's file with this ID.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, was deleted, or has expired.
pub async fn get(db: &mut PgConnection, project: ProjectId, id: FileId) -> Result<File, StoreError> {
    sqlx::query_as!(
        Row,
        "select file_id, filename, purpose, bytes, sha256, format, row_count, container, compression, shape,
             rows_sha256, rows_bytes, created_at, expires_at
         from file where file_id = $1 and project_id = $2 and deleted_at is null
             and (expires_at is null or expires_at > now())",
        id.uuid(),
        project.uuid(),
    )
    .fetch_optional(db)
    .await?
    .ok_or(StoreError::NotFound("file"))?
    .try_into()
}

/// Returns a file that a job of the project names, even if it was deleted or has expired since.
///
/// # Errors
/// [`StoreError::NotFound`]: it never existed.
pub async fn of_job(db: &mut PgConnection, project: ProjectId, id: FileId) -> Result<File, StoreError> {
    sqlx::query_as!(
        Row,
        "select file_id, filename, purpose, bytes, sha256, format, row_count, container, compression, shape,
             rows_sha256, rows_bytes, created_at, expires_at
         from file where file_id = $1 and project_id = $2",
        id.uuid(),
        project.uuid(),
    )
    .fetch_optional(db)
    .await?
    .ok_or(StoreError::NotFound("file"))?
    .try_into()
}

/// Returns the project's files, newest first unless the page requires otherwise; only those with `purpose`, if one is
/// given.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    purpose: Option<&str>,
    page: &Page,
) -> Result<Vec<File>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select file_id, filename, purpose, bytes, sha256, format, row_count, container, compression, shape,
             rows_sha256, rows_bytes, created_at, expires_at
         from file
         where project_id = $1 and deleted_at is null and (expires_at is null or expires_at > now())
           and ($2::text is null or purpose = $2)
           and ($3::uuid is null or case when $5 then file_id > $3 else file_id < $3 end)
         order by case when $5 then file_id end, file_id desc
         limit $4",
        project.uuid(),
        purpose,
        page.after.map(|id| id.uuid()),
        page.limit,
        page.ascending,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(File::try_from).collect()
}

/// Returns a project's file for a new job to name. It cannot be deleted until the transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted.
pub async fn lock_for_job(tx: &mut PgConnection, project: ProjectId, id: FileId) -> Result<File, StoreError> {
    sqlx::query!("select file_id from file where file_id = $1 for share", id.uuid()).fetch_optional(&mut *tx).await?;
    get(tx, project, id).await
}

/// Deletes a file: hides it and drops its content, unless an unfinished job uses it: then nothing changes and that job
/// is returned.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted before.
pub async fn delete(tx: &mut PgConnection, project: ProjectId, id: FileId) -> Result<Option<JobId>, StoreError> {
    let content = sqlx::query!(
        "select sha256, rows_sha256 from file
         where file_id = $1 and project_id = $2 and deleted_at is null and (expires_at is null or expires_at > now())
         for update",
        id.uuid(),
        project.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::NotFound("file"))?;
    // A separate statement, so that it sees jobs whose transactions ended while this one waited for the lock.
    let needed_by = sqlx::query_scalar!(
        "select job_id from job where (training_file_id = $1 or validation_file_id = $1)
             and state not in ('succeeded', 'failed', 'cancelled') limit 1",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(job) = needed_by {
        return Ok(Some(JobId::new(job)));
    }
    sqlx::query!("update file set deleted_at = now() where file_id = $1", id.uuid()).execute(&mut *tx).await?;
    let digests = dropped(&content.sha256, content.rows_sha256.as_deref())?;
    blob::discard_digests(tx, &digests).await?;
    Ok(None)
}

/// The number of files that expire in one transaction.
const EXPIRED_AT_ONCE: i64 = 100;

/// Deletes expired files; one that an unfinished job uses waits until that job has ended. Covers all projects: for the
/// platform's own transactions.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn expire(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let gone = sqlx::query!(
        "update file set deleted_at = now()
         where file_id in (
             select file_id from file where expires_at <= now() and deleted_at is null and not exists (
                 select from job where state not in ('succeeded', 'failed', 'cancelled')
                     and (training_file_id = file_id or validation_file_id = file_id))
             order by expires_at limit $1 for update skip locked)
         returning sha256, rows_sha256",
        EXPIRED_AT_ONCE,
    )
    .fetch_all(&mut *tx)
    .await?;
    let count = gone.len() as u64;
    let mut digests = Vec::with_capacity(gone.len());
    for row in gone {
        digests.extend(dropped(&row.sha256, row.rows_sha256.as_deref())?);
    }
    blob::discard_digests(tx, &digests).await?;
    Ok(Batch { gone: count, has_more: count >= EXPIRED_AT_ONCE.unsigned_abs() })
}
