//! What the user can read of a job's life: sentences and metrics, in order. Written beside every step, never changed.

use attune_domain::id::{JobEventId, JobId, ProjectId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::StoreError, mint};

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All is well.
    Info,
    /// Something was set right.
    Warn,
    /// The job failed.
    Error,
}

impl Level {
    /// The word in SQL and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// One event as its row has it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEventRow {
    /// Which event.
    pub job_event_id: JobEventId,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// `message` or `metrics`.
    pub kind: String,
    /// The sentence.
    pub message: String,
    /// The metrics of an event of kind `metrics`; what a `message` says, for programs.
    pub data: Option<serde_json::Value>,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Writes a sentence down.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn message(tx: &mut PgConnection, job: JobId, level: Level, text: &str) -> Result<(), StoreError> {
    message_with(tx, job, level, text, &serde_json::Value::Null).await
}

/// Writes a sentence down, and what it says for programs; `null`: nothing to add.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn message_with(
    tx: &mut PgConnection,
    job: JobId,
    level: Level,
    text: &str,
    data: &serde_json::Value,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into job_event (job_event_id, job_id, level, type, message, data)
         values ($1, $2, $3, 'message', $4, $5)",
        mint::id::<attune_domain::id::JobEvent>().uuid(),
        job.uuid(),
        level.name(),
        text,
        Some(data).filter(|data| !data.is_null()),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes metrics down, with a sentence that says them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn metrics(tx: &mut PgConnection, job: JobId, text: &str, data: serde_json::Value) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into job_event (job_event_id, job_id, level, type, message, data)
         values ($1, $2, 'info', 'metrics', $3, $4)",
        mint::id::<attune_domain::id::JobEvent>().uuid(),
        job.uuid(),
        text,
        data,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The events of a project's job, newest first, from the one after `after` on.
///
/// # Errors
/// [`StoreError::Database`]. A job that is another project's has no events: ask [`crate::job::get`] first.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    job: JobId,
    after: Option<JobEventId>,
    limit: i64,
) -> Result<Vec<JobEventRow>, StoreError> {
    let rows = sqlx::query!(
        "select job_event_id, level, type as kind, message, data, job_event.created_at
         from job_event join job using (job_id)
         where job_id = $1 and project_id = $2 and ($3::uuid is null or job_event_id < $3)
         order by job_event_id desc limit $4",
        job.uuid(),
        project.uuid(),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| JobEventRow {
            job_event_id: JobEventId::new(row.job_event_id),
            level: row.level,
            kind: row.kind,
            message: row.message,
            data: row.data,
            created_at: row.created_at,
        })
        .collect())
}
