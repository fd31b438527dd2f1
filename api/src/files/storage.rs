//! The storage quota of a project. It is checked in the transaction that writes the row of new content, after the row,
//! so that no two requests use the same remaining storage. Runs in progress may exceed it, each by the checkpoints and
//! the adapter of its job; no new job begins then.

use attune_domain::{bytes::Bytes, id::ProjectId, run::Blob};
use attune_store::files::storage::{self, Storage};
use sqlx::PgConnection;

use crate::{app::App, error::ApiError};

/// The storage that a request takes which stores no content.
pub const NOTHING: Storage = Storage { bytes: Bytes(0), objects: 0 };

/// Returns the storage that objects of these lengths take.
pub fn of(lengths: impl IntoIterator<Item = Bytes>) -> Storage {
    let add = |sum: Storage, bytes| Storage { bytes: sum.bytes + bytes, objects: sum.objects + 1 };
    lengths.into_iter().fold(NOTHING, add)
}

/// Returns the storage that files take.
pub fn of_files(files: &[Blob]) -> Storage {
    of(files.iter().map(|file| file.bytes))
}

/// Refuses what the transaction has added to the project's storage, if that exceeds the quota.
///
/// # Errors
/// [`ApiError::StorageQuotaExceeded`], [`ApiError::Internal`].
pub async fn check(app: &App, tx: &mut PgConnection, project: ProjectId, added: Storage) -> Result<(), ApiError> {
    let stored = storage::stored_by_now(tx, project).await?;
    within(quota(app, tx, project).await?, stored, added)
}

/// Refuses content that is about to be uploaded, of which `more` bytes are known to come, if it exceeds the quota. Only
/// [`check`] decides; this avoids useless uploads.
///
/// # Errors
/// As [`check`].
pub async fn expect(app: &App, project: ProjectId, more: u64) -> Result<(), ApiError> {
    let mut db = app.tenant(project).await?;
    let (used, added) = (storage::stored(&mut db, project).await?, of([Bytes(more)]));
    let stored = Storage { bytes: used.bytes + added.bytes, objects: used.objects + added.objects };
    within(quota(app, &mut db, project).await?, stored, added)
}

/// Returns the storage quota of a project: its own, within that of the installation.
///
/// # Errors
/// [`ApiError::Internal`].
pub async fn quota(app: &App, db: &mut PgConnection, project: ProjectId) -> Result<Storage, ApiError> {
    let installation = Storage { bytes: Bytes(app.limits.storage_bytes), objects: app.limits.storage_objects };
    Ok(storage::quota(db, project, installation).await?)
}

/// Compares with the quota what the project stores, the content of the request included.
fn within(quota: Storage, stored: Storage, added: Storage) -> Result<(), ApiError> {
    let exceeded = |what, limit, stored: u64, added| {
        Err(ApiError::StorageQuotaExceeded { what, limit, used: stored.saturating_sub(added), added })
    };
    if stored.bytes > quota.bytes {
        return exceeded("bytes", quota.bytes.0, stored.bytes.0, added.bytes.0);
    }
    if stored.objects > quota.objects {
        return exceeded("objects", quota.objects, stored.objects, added.objects);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_quota_what_is_used_and_what_is_asked_for() {
        let quota = of([Bytes(50), Bytes(50)]);
        assert!(within(quota, of([Bytes(40), Bytes(60)]), of([Bytes(60)])).is_ok());
        let refused = within(quota, of([Bytes(40), Bytes(61)]), of([Bytes(61)])).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("is 100 bytes. It stores 40, and this request adds 61."), "{message}");
        assert_eq!(refused.body().error.code, Some("storage_quota_exceeded"));
        let refused = within(quota, of([1, 1, 1].map(Bytes)), of([Bytes(1)])).unwrap_err().to_string();
        assert!(refused.contains("is 2 objects. It stores 2, and this request adds 1."), "{refused}");
        let full = within(quota, of([Bytes(101)]), NOTHING).unwrap_err().to_string();
        assert!(full.contains("is 100 bytes. It stores 101, which exceeds it."), "{full}");
    }
}
