//! Files that users brought. The bytes lie in the object store under their digest; here is what is known of them.
//!
//! A deleted file is out of the user's sight at once; its row stays, since jobs name it, and its content is swept later.
//! A file that a job still needs cannot be deleted.

use attune_domain::{
    bytes::Bytes,
    dataset::RowFormat,
    id::{File as FileKind, FileId, JobId, ProjectId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{blob, error::StoreError, mint};

/// A file, checked when it was uploaded.
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
    /// Which kind of rows.
    pub format: RowFormat,
    /// How many rows.
    pub rows: u64,
    /// When it was uploaded.
    pub created_at: DateTime<Utc>,
}

/// What an upload found out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the one of File with the same name")]
pub struct NewFile {
    pub filename: String,
    pub purpose: String,
    pub bytes: Bytes,
    pub sha256: String,
    pub format: RowFormat,
    pub rows: u64,
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
    format: String,
    row_count: i64,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for File {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let format = RowFormat::from_name(&row.format).ok_or_else(|| StoreError::Corrupt {
            column: "file.format",
            cause: format!("'{}' is no format", row.format).into(),
        })?;
        Ok(Self {
            file_id: FileId::new(row.file_id),
            filename: row.filename,
            purpose: row.purpose,
            bytes: Bytes::from_i64(row.bytes),
            sha256: row.sha256,
            format,
            rows: u64::try_from(row.row_count).unwrap_or(0),
            created_at: row.created_at,
        })
    }
}

/// Keeps a new file's row. Its object must be in the store already.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert(db: &mut PgConnection, project: ProjectId, new: NewFile) -> Result<File, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "insert into file (file_id, project_id, filename, purpose, bytes, sha256, format, row_count)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         returning file_id, filename, purpose, bytes, sha256, format, row_count, created_at",
        mint::id::<FileKind>().uuid(),
        project.uuid(),
        new.filename,
        new.purpose,
        new.bytes.to_i64(),
        new.sha256,
        new.format.name(),
        i64::try_from(new.rows).unwrap_or(i64::MAX),
    )
    .fetch_one(db)
    .await?;
    row.try_into()
}

/// The project's file of this id.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was deleted.
pub async fn get(db: &mut PgConnection, project: ProjectId, id: FileId) -> Result<File, StoreError> {
    sqlx::query_as!(
        Row,
        "select file_id, filename, purpose, bytes, sha256, format, row_count, created_at
         from file where file_id = $1 and project_id = $2 and deleted_at is null",
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
        "select file_id, filename, purpose, bytes, sha256, format, row_count, created_at
         from file
         where project_id = $1 and deleted_at is null and ($2::text is null or purpose = $2)
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
    let sha256 = sqlx::query_scalar!(
        "select sha256 from file where file_id = $1 and project_id = $2 and deleted_at is null for update",
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
    blob::discard_digests(tx, &[sha256]).await?;
    Ok(None)
}
