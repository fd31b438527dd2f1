//! Uploads: files that are uploaded in parts. Each part is an object of its own; a process claims the upload before it
//! joins them, so that they are joined once.

use attune_domain::{
    bytes::Bytes,
    id::{FileId, ProjectId, Upload as UploadKind, UploadId, UploadPart as PartKind, UploadPartId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use strum::{EnumString, IntoStaticStr};

use crate::{
    error::{StoreError, named},
    files::objects::Objects,
    ids,
    sweep_batch::Batch,
};

/// The lease of a claim, in seconds: if it is not renewed, another process may join the parts.
pub const CLAIM_SECONDS: f64 = 60.0;

/// An upload's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The upload's ID.
    pub upload_id: UploadId,
    /// The name of the resulting file.
    pub filename: String,
    /// The purpose of the resulting file, in OpenAI's terms.
    pub purpose: String,
    /// The required total length of its parts.
    pub bytes: Bytes,
    /// The status.
    pub status: UploadStatus,
    /// Seconds until the file expires; `None`: it is kept until it is deleted.
    pub file_expires_after_seconds: Option<u32>,
    /// The ID of the resulting file.
    pub file_id: Option<FileId>,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
    /// The time at which it expires if it is not completed.
    pub expires_at: DateTime<Utc>,
}

/// The status of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum UploadStatus {
    /// The upload accepts parts.
    Pending,
    /// The upload was completed into a file.
    Completed,
    /// The user cancelled the upload.
    Cancelled,
    /// The upload expired.
    Expired,
}

impl UploadStatus {
    /// Returns the name in SQL and on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A new upload.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the one of Upload with the same name")]
pub struct NewUpload {
    pub filename: String,
    pub purpose: String,
    pub bytes: Bytes,
    pub file_expires_after_seconds: Option<u32>,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The part's ID.
    pub upload_part_id: UploadPartId,
    /// The part's length.
    pub bytes: Bytes,
    /// The key of the part's object.
    pub object_key: String,
    /// The time of the upload.
    pub created_at: DateTime<Utc>,
}

/// The row as SQL returns it.
struct Row {
    upload_id: uuid::Uuid,
    filename: String,
    purpose: String,
    bytes: i64,
    status: String,
    file_expires_after_seconds: Option<i32>,
    file_id: Option<uuid::Uuid>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl TryFrom<Row> for Upload {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            upload_id: UploadId::new(row.upload_id),
            filename: row.filename,
            purpose: row.purpose,
            bytes: Bytes::from_i64(row.bytes),
            status: named("upload.status", &row.status, "status")?,
            file_expires_after_seconds: row.file_expires_after_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
            file_id: row.file_id.map(FileId::new),
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

/// Inserts an upload.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert(db: &mut PgConnection, project: ProjectId, new: NewUpload) -> Result<Upload, StoreError> {
    sqlx::query_as!(
        Row,
        "insert into upload (upload_id, project_id, filename, purpose, bytes, file_expires_after_seconds)
         values ($1, $2, $3, $4, $5, $6)
         returning upload_id, filename, purpose, bytes, status, file_expires_after_seconds, file_id, created_at,
             expires_at",
        ids::id::<UploadKind>().uuid(),
        project.uuid(),
        new.filename,
        new.purpose,
        new.bytes.to_i64(),
        new.file_expires_after_seconds.and_then(|seconds| i32::try_from(seconds).ok()),
    )
    .fetch_one(db)
    .await?
    .try_into()
}

/// Returns the project's upload with this ID, locked until the transaction ends. An overdue one is returned as expired.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist.
pub async fn lock(tx: &mut PgConnection, project: ProjectId, id: UploadId) -> Result<Upload, StoreError> {
    sqlx::query_as!(
        Row,
        r#"select upload_id, filename, purpose, bytes,
               case when status = 'pending' and expires_at <= now() and coalesce(claimed_until, now()) <= now()
                   then 'expired' else status end as "status!",
               file_expires_after_seconds, file_id, created_at, expires_at
           from upload where upload_id = $1 and project_id = $2 for update"#,
        id.uuid(),
        project.uuid(),
    )
    .fetch_optional(tx)
    .await?
    .ok_or(StoreError::NotFound("upload"))?
    .try_into()
}

/// Adds a part, whose object is already stored. The upload is locked and pending.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn add_part(
    tx: &mut PgConnection,
    project: ProjectId,
    upload: UploadId,
    (object_key, bytes): (&str, Bytes),
) -> Result<Part, StoreError> {
    let row = sqlx::query!(
        "insert into upload_part (upload_part_id, upload_id, project_id, bytes, object_key)
         values ($1, $2, $3, $4, $5) returning upload_part_id, created_at",
        ids::id::<PartKind>().uuid(),
        upload.uuid(),
        project.uuid(),
        bytes.to_i64(),
        object_key,
    )
    .fetch_one(tx)
    .await?;
    Ok(Part {
        upload_part_id: UploadPartId::new(row.upload_part_id),
        bytes,
        object_key: object_key.to_owned(),
        created_at: row.created_at,
    })
}

/// Returns all parts of an upload, the oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn parts(db: &mut PgConnection, upload: UploadId) -> Result<Vec<Part>, StoreError> {
    let rows = sqlx::query!(
        "select upload_part_id, bytes, object_key, created_at from upload_part where upload_id = $1
         order by upload_part_id",
        upload.uuid(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Part {
            upload_part_id: UploadPartId::new(row.upload_part_id),
            bytes: Bytes::from_i64(row.bytes),
            object_key: row.object_key,
            created_at: row.created_at,
        })
        .collect())
}

/// The exclusive right to join the parts of an upload; it must be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The upload's ID.
    pub upload_id: UploadId,
    claim: uuid::Uuid,
}

/// Claims a pending upload in order to join its parts; `None`: another process has claimed it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(tx: &mut PgConnection, id: UploadId) -> Result<Option<Claim>, StoreError> {
    let claim = ids::uuid();
    let claimed = sqlx::query!(
        "update upload set claimed_until = now() + make_interval(secs => $2), claimed_by = $3
         where upload_id = $1 and status = 'pending' and coalesce(claimed_until, now()) <= now()",
        id.uuid(),
        CLAIM_SECONDS,
        claim,
    )
    .execute(tx)
    .await?;
    Ok((claimed.rows_affected() == 1).then_some(Claim { upload_id: id, claim }))
}

/// Renews a claim.
///
/// # Errors
/// [`StoreError::Stale`]: another process has taken it over. [`StoreError::Database`].
pub async fn renew(tx: &mut PgConnection, claim: Claim) -> Result<(), StoreError> {
    let renewed = sqlx::query!(
        "update upload set claimed_until = now() + make_interval(secs => $3)
         where upload_id = $1 and claimed_by = $2 and status = 'pending'",
        claim.upload_id.uuid(),
        claim.claim,
        CLAIM_SECONDS,
    )
    .execute(tx)
    .await?;
    if renewed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Returns whether a process is joining the parts.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn is_claimed(tx: &mut PgConnection, id: UploadId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select status = 'pending' and coalesce(claimed_until > now(), false) as "claimed!" from upload
           where upload_id = $1"#,
        id.uuid(),
    )
    .fetch_one(tx)
    .await?)
}

/// Releases the claim after a failed join: the upload is pending again, unless another process has taken the claim
/// over.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn release(tx: &mut PgConnection, claim: Claim) -> Result<(), StoreError> {
    sqlx::query!(
        "update upload set claimed_until = null, claimed_by = null where upload_id = $1 and claimed_by = $2",
        claim.upload_id.uuid(),
        claim.claim,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Completes the upload with its file.
///
/// # Errors
/// [`StoreError::Stale`]: it is not pending any more, or another process has taken the claim over.
/// [`StoreError::Database`].
pub async fn complete(tx: &mut PgConnection, claim: Claim, file: FileId) -> Result<(), StoreError> {
    let done = sqlx::query!(
        "update upload set status = 'completed', file_id = $3, claimed_until = null, claimed_by = null
         where upload_id = $1 and claimed_by = $2 and status = 'pending'",
        claim.upload_id.uuid(),
        claim.claim,
        file.uuid(),
    )
    .execute(tx)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Cancels the upload, which is locked, pending, and not claimed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn cancel(tx: &mut PgConnection, id: UploadId) -> Result<(), StoreError> {
    sqlx::query!("update upload set status = 'cancelled' where upload_id = $1", id.uuid()).execute(tx).await?;
    Ok(())
}

/// The number of parts deleted in one transaction.
const SWEPT_AT_ONCE: i64 = 100;

/// Days after its creation for which an ended upload is kept.
pub const KEPT_DAYS: i32 = 30;

/// Marks expired uploads, and deletes parts that are not needed any more. Covers all projects: for the platform's own
/// transactions.
///
/// # Errors
/// [`StoreError::Object`], [`StoreError::Database`].
pub(crate) async fn sweep(tx: &mut PgConnection, objects: &Objects) -> Result<Batch, StoreError> {
    sqlx::query!(
        "update upload set status = 'expired'
         where upload_id in (select upload_id from upload where status = 'pending' and expires_at <= now()
             and coalesce(claimed_until, now()) <= now() for update skip locked)",
    )
    .execute(&mut *tx)
    .await?;
    let parts = sqlx::query!(
        "select upload_part_id, object_key from upload_part join upload using (upload_id)
         where status <> 'pending' order by upload_part_id limit $1 for update of upload_part skip locked",
        SWEPT_AT_ONCE,
    )
    .fetch_all(&mut *tx)
    .await?;
    for part in &parts {
        objects.delete(&part.object_key).await?;
        sqlx::query!("delete from upload_part where upload_part_id = $1", part.upload_part_id)
            .execute(&mut *tx)
            .await?;
    }
    Ok(Batch { gone: parts.len() as u64, has_more: parts.len() as i64 >= SWEPT_AT_ONCE })
}

/// Deletes ended uploads that were created more than [`KEPT_DAYS`] ago and have no parts left.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn forget_old(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let forgotten = sqlx::query!(
        "delete from upload where upload_id in (select upload_id from upload
             where status <> 'pending' and created_at < now() - make_interval(days => $1)
                 and not exists (select from upload_part where upload_part.upload_id = upload.upload_id)
             order by created_at limit $2 for update skip locked)",
        KEPT_DAYS,
        SWEPT_AT_ONCE,
    )
    .execute(tx)
    .await?;
    let gone = forgotten.rows_affected();
    Ok(Batch { gone, has_more: gone >= SWEPT_AT_ONCE.unsigned_abs() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_name_in_sql() {
        for name in ["pending", "completed", "cancelled", "expired"] {
            assert_eq!(name.parse::<UploadStatus>().unwrap().name(), name);
        }
        let unknown = named::<UploadStatus>("upload.status", "lost", "status").unwrap_err();
        assert_eq!(unknown.to_string(), "upload.status holds a value that this release does not understand");
        assert_eq!(std::error::Error::source(&unknown).unwrap().to_string(), "'lost' is no status");
    }
}
