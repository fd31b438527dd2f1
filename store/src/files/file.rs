//! Files that users brought or the platform made. The bytes lie in the object store under their digest; here is what is
//! known of them.
//!
//! A deleted file is out of the user's sight at once, and so is one whose time is up; its row stays, since jobs name it,
//! and its content is swept later. A file that a job still needs cannot be deleted, and its content outlives its time.

use attune_domain::{
    bytes::Bytes,
    dataset::RowFormat,
    id::{File as FileKind, FileId, JobId, ProjectId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::StoreError, files::blob, mint, sweep_batch::Batch};

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its id.
    pub file_id: FileId,
    /// As the user called it.
    pub filename: String,
    /// OpenAI's word for what it is for.
    pub purpose: String,
    /// Its length.
    pub bytes: Bytes,
    /// Lower-case hex; also its object key.
    pub sha256: String,
    /// What the check of its rows found; `None`: it is no dataset.
    pub dataset: Option<Dataset>,
    /// When it was uploaded.
    pub created_at: DateTime<Utc>,
    /// When it goes by itself.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A file's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// What the trainer makes of a row.
    pub format: RowFormat,
    /// How many.
    pub rows: u64,
    /// How the file is written.
    pub source: Source,
    /// Where its rows lie, one JSON object a line; `None`: in the file itself.
    pub canonical: Option<Canonical>,
}

/// How a dataset was written by its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `jsonl`, `json`, `csv`, `tsv` or `parquet`.
    pub container: String,
    /// `gzip` or `zstd`.
    pub compression: Option<String>,
    /// `chat`, `completion`, `text`, `alpaca`, `sharegpt` or `preference`.
    pub shape: String,
}

/// Rows as trainers read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical {
    /// Lower-case hex.
    pub sha256: String,
    /// Its length.
    pub bytes: Bytes,
}

impl File {
    /// The digest of the content that trainers read.
    #[must_use]
    pub fn rows_sha256(&self) -> &str {
        let canonical = self.dataset.as_ref().and_then(|dataset| dataset.canonical.as_ref());
        canonical.map_or(&self.sha256, |canonical| &canonical.sha256)
    }
}

/// What is known of a file before it has a row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field but the last is the one of File with the same name")]
pub struct NewFile {
    pub filename: String,
    pub purpose: String,
    pub bytes: Bytes,
    pub sha256: String,
    pub dataset: Option<Dataset>,
    /// How long it is there; `None`: until it is deleted.
    pub expires_after_seconds: Option<u32>,
}

/// Which part of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Those behind this one.
    pub after: Option<FileId>,
    /// At most so many.
    pub limit: i64,
    /// Oldest first.
    pub ascending: bool,
}

/// A row as SQL has it.
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
                format: RowFormat::from_name(&format).ok_or_else(|| StoreError::Corrupt {
                    column: "file.format",
                    cause: format!("'{format}' is no format").into(),
                })?,
                rows: u64::try_from(row.row_count.unwrap_or(0)).unwrap_or(0),
                source: Source {
                    container: row.container.unwrap_or_default(),
                    compression: row.compression,
                    shape: row.shape.unwrap_or_default(),
                },
                canonical: row
                    .rows_sha256
                    .zip(row.rows_bytes)
                    .map(|(sha256, bytes)| Canonical { sha256, bytes: Bytes::from_i64(bytes) }),
            })
        });
        Ok(Self {
            file_id: FileId::new(row.file_id),
            filename: row.filename,
            purpose: row.purpose,
            bytes: Bytes::from_i64(row.bytes),
            sha256: row.sha256,
            dataset: dataset.transpose()?,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

/// Keeps a new file's row. Its objects must be in the store already.
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
        mint::id::<FileKind>().uuid(),
        project.uuid(),
        new.filename,
        new.purpose,
        new.bytes.to_i64(),
        new.sha256,
        dataset.map(|dataset| dataset.format.name()),
        dataset.map(|dataset| i64::try_from(dataset.rows).unwrap_or(i64::MAX)),
        source.map(|source| source.container.as_str()),
        source.and_then(|source| source.compression.as_deref()),
        source.map(|source| source.shape.as_str()),
        canonical.map(|canonical| canonical.sha256.as_str()),
        canonical.map(|canonical| canonical.bytes.to_i64()),
        new.expires_after_seconds.map(i64::from),
    )
    .fetch_one(db)
    .await?;
    row.try_into()
}

/// The project's file of this id.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, it was deleted, or its time is up.
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

/// A file that a job of the project names, whatever became of it since.
///
/// # Errors
/// [`StoreError::NotFound`]: there never was one.
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

/// The project's files, newest first unless the page says otherwise; only those for `purpose`, if one is given.
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

/// A project's file that a new job is about to name. It cannot be deleted until the transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted.
pub async fn lock_for_job(tx: &mut PgConnection, project: ProjectId, id: FileId) -> Result<File, StoreError> {
    sqlx::query!("select file_id from file where file_id = $1 for share", id.uuid()).fetch_optional(&mut *tx).await?;
    get(tx, project, id).await
}

/// Takes a file out of the user's sight and lets its content go, unless a job that has not ended still needs it:
/// then nothing changes and that job is returned.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted before.
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
    // A statement of its own, so that it sees jobs whose transactions ended while the lock was waited for.
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
    let digests: Vec<String> = std::iter::once(content.sha256).chain(content.rows_sha256).collect();
    blob::discard_digests(tx, &digests).await?;
    Ok(None)
}

/// Files that are let go of in one transaction.
const EXPIRED_AT_ONCE: i64 = 100;

/// Lets go of files whose time is up; one that a job still needs waits until that job has ended. Those of all projects:
/// for the platform's own transactions.
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
    let digests: Vec<String> =
        gone.into_iter().flat_map(|row| std::iter::once(row.sha256).chain(row.rows_sha256)).collect();
    blob::discard_digests(tx, &digests).await?;
    Ok(Batch { gone: count, has_more: count >= EXPIRED_AT_ONCE.unsigned_abs() })
}
