//! What the user can read of a job's life: sentences and metrics, in order. Written beside every step, never changed.

use attune_domain::{
    id::{JobEventId, JobId, ProjectId},
    text::{storable::storable_json, tenant_text::for_tenant},
};
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
    /// Its number: greater than those of all earlier ones of its job.
    pub sequence: i64,
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
    insert(tx, job, (level, "message"), text, Some(data).filter(|data| !data.is_null())).await
}

/// Writes metrics down, with a sentence that says them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn metrics(tx: &mut PgConnection, job: JobId, text: &str, data: serde_json::Value) -> Result<(), StoreError> {
    insert(tx, job, (Level::Info, "metrics"), text, Some(&data)).await
}

/// The job's row is locked until the transaction ends, and only then is the number given out: numbers are seen in order.
async fn insert(
    tx: &mut PgConnection,
    job: JobId,
    (level, kind): (Level, &str),
    text: &str,
    data: Option<&serde_json::Value>,
) -> Result<(), StoreError> {
    let data = data.map(storable_json);
    sqlx::query!(
        "insert into job_event (job_event_id, job_id, level, type, message, data)
         select $1, job_id, $3, $4, $5, $6 from job where job_id = $2 for update",
        mint::id::<attune_domain::id::JobEvent>().uuid(),
        job.uuid(),
        level.name(),
        kind,
        for_tenant(text),
        data.as_deref(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The number of an event of a project's job; `None`: it has no such event.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn place(
    conn: &mut PgConnection,
    project: ProjectId,
    job: JobId,
    event: JobEventId,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar!(
        "select sequence from job_event join job using (job_id)
         where job_event_id = $1 and job_id = $2 and project_id = $3",
        event.uuid(),
        job.uuid(),
        project.uuid(),
    )
    .fetch_optional(conn)
    .await?)
}

/// The events of a project's job, newest first, from the one before the number `before` on.
///
/// # Errors
/// [`StoreError::Database`]. A job that is another project's has no events: ask [`crate::jobs::job::get`] first.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    job: JobId,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<JobEventRow>, StoreError> {
    let rows = sqlx::query_as!(
        JobEventSql,
        "select job_event_id, sequence, level, type as kind, message, data, job_event.created_at
         from job_event join job using (job_id)
         where job_id = $1 and project_id = $2 and sequence < $3
         order by sequence desc limit $4",
        job.uuid(),
        project.uuid(),
        before.unwrap_or(i64::MAX),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(JobEventRow::from).collect())
}

/// The events of a project's job behind the number `after`, oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn following(
    conn: &mut PgConnection,
    project: ProjectId,
    job: JobId,
    after: i64,
    limit: i64,
) -> Result<Vec<JobEventRow>, StoreError> {
    let rows = sqlx::query_as!(
        JobEventSql,
        "select job_event_id, sequence, level, type as kind, message, data, job_event.created_at
         from job_event join job using (job_id)
         where job_id = $1 and project_id = $2 and sequence > $3
         order by sequence limit $4",
        job.uuid(),
        project.uuid(),
        after,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(JobEventRow::from).collect())
}

/// The row as Postgres gives it.
struct JobEventSql {
    job_event_id: uuid::Uuid,
    sequence: i64,
    level: String,
    kind: String,
    message: String,
    data: Option<serde_json::Value>,
    created_at: DateTime<Utc>,
}

impl From<JobEventSql> for JobEventRow {
    fn from(row: JobEventSql) -> Self {
        Self {
            job_event_id: JobEventId::new(row.job_event_id),
            sequence: row.sequence,
            level: row.level,
            kind: row.kind,
            message: row.message,
            data: row.data,
            created_at: row.created_at,
        }
    }
}
