//! What a project may store. Checked in the transaction that writes the row of what is stored, after the row, so that no
//! two requests take the same room. Runs that are under way may go beyond it, by the checkpoints and the adapter of a job
//! each; no new job begins then.

use attune_domain::id::ProjectId;
use attune_store::files::storage::{self, Storage};
use sqlx::PgConnection;

use crate::{app::App, error::ApiError};

/// Refuses what a transaction has stored for the project if that is too much.
///
/// # Errors
/// [`ApiError::StorageQuotaExceeded`], [`ApiError::Internal`].
pub async fn check(app: &App, tx: &mut PgConnection, project: ProjectId) -> Result<(), ApiError> {
    within(app, storage::stored_by_now(tx, project).await?, 0)
}

/// Refuses what is about to be stored, some of which may be known to have `more` bytes, if there is no room for it. Only
/// [`check`] decides; this keeps content from coming in vain.
///
/// # Errors
/// As [`check`].
pub async fn expect(app: &App, project: ProjectId, more: u64) -> Result<(), ApiError> {
    let mut db = app.tenant(project).await?;
    let mut stored = storage::stored(&mut db, project).await?;
    stored.objects += 1;
    within(app, stored, more)
}

/// What the project may store.
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
