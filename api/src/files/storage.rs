//! The storage quota of a project. It is checked in the transaction that writes the row of new content, after the row,
//! so that no two requests use the same remaining storage. Runs in progress may exceed it, each by the checkpoints and
//! the adapter of its job; no new job begins then.

use attune_domain::id::ProjectId;
use attune_store::files::storage::{self, Storage};
use sqlx::PgConnection;

use crate::{app::App, error::ApiError};

/// Refuses the content that a transaction has stored for the project if it exceeds the quota.
///
/// # Errors
/// [`ApiError::StorageQuotaExceeded`], [`ApiError::Internal`].
pub async fn check(app: &App, tx: &mut PgConnection, project: ProjectId) -> Result<(), ApiError> {
    within(app, storage::stored_by_now(tx, project).await?, 0)
}

/// Refuses content that is about to be uploaded, of which `more` bytes are known to come, if it exceeds the quota. Only
/// [`check`] decides; this avoids useless uploads.
///
/// # Errors
/// As [`check`].
pub async fn expect(app: &App, project: ProjectId, more: u64) -> Result<(), ApiError> {
    let mut db = app.tenant(project).await?;
    let mut stored = storage::stored(&mut db, project).await?;
    stored.objects += 1;
    within(app, stored, more)
}

/// Returns the storage quota of a project.
pub fn quota(app: &App) -> Storage {
    Storage { bytes: attune_domain::bytes::Bytes(app.limits.storage_bytes), objects: app.limits.storage_objects }
}

fn within(app: &App, stored: Storage, more: u64) -> Result<(), ApiError> {
    let quota = quota(app);
    let bytes = stored.bytes.0.saturating_add(more);
    if bytes > quota.bytes.0 {
        return Err(ApiError::StorageQuotaExceeded { what: "bytes", limit: quota.bytes.0, wanted: bytes });
    }
    if stored.objects > quota.objects {
        return Err(ApiError::StorageQuotaExceeded { what: "objects", limit: quota.objects, wanted: stored.objects });
    }
    Ok(())
}
