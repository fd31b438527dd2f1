//! Limits on the unfinished work of one project, checked in the transaction that adds to it.

use attune_domain::id::ProjectId;
use sqlx::PgConnection;

use crate::error::StoreError;

/// A kind of limited work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Fine-tuning jobs; a paused one counts.
    Jobs,
    /// Batches.
    Batches,
    /// Exports of adapters.
    Exports,
}

impl Kind {
    /// Returns the plural noun, for messages.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Jobs => "fine-tuning jobs",
            Self::Batches => "batches",
            Self::Exports => "exports",
        }
    }
}

/// Checks that one more of `kind` is allowed. Requests of the same project take turns until their transaction ends, so
/// that together they cannot exceed the limit. A limit of 0 means none.
///
/// # Errors
/// [`StoreError::TooManyUnfinished`]: the limit is reached. [`StoreError::Database`].
pub async fn admit(tx: &mut PgConnection, project: ProjectId, kind: Kind, most: u32) -> Result<(), StoreError> {
    if most == 0 {
        return Ok(());
    }
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended($1 || $2::uuid::text, 0))",
        kind.noun(),
        project.uuid(),
    )
    .execute(&mut *tx)
    .await?;
    let unfinished = match kind {
        Kind::Jobs => {
            sqlx::query_scalar!(
                r#"select count(*) as "count!" from job
                 where project_id = $1 and state not in ('succeeded', 'failed', 'cancelled')"#,
                project.uuid(),
            )
            .fetch_one(tx)
            .await?
        }
        Kind::Batches => {
            sqlx::query_scalar!(
                r#"select count(*) as "count!" from batch
                 where project_id = $1 and state in ('validating', 'in_progress', 'finalizing', 'cancelling')"#,
                project.uuid(),
            )
            .fetch_one(tx)
            .await?
        }
        Kind::Exports => {
            sqlx::query_scalar!(
                r#"select count(*) as "count!" from export
                 where project_id = $1 and state in ('queued', 'running') and deleted_at is null"#,
                project.uuid(),
            )
            .fetch_one(tx)
            .await?
        }
    };
    if unfinished >= i64::from(most) {
        return Err(StoreError::TooManyUnfinished { noun: kind.noun(), most });
    }
    Ok(())
}
