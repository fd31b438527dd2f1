//! A job's events for its user: messages and metrics, in order. Written with every step, never changed.

use attune_domain::{
    id::{JobEventId, JobId, ProjectId},
    text::{storable::storable_json, tenant_text::for_tenant},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use strum::IntoStaticStr;

use crate::{error::StoreError, ids};

/// The level of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Level {
    /// Normal progress.
    Info,
    /// A problem that was handled.
    Warn,
    /// A failure of the job.
    Error,
}

/// An event's row.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEventRow {
    /// The event's ID.
    pub job_event_id: JobEventId,
    /// The event's number: greater than those of all earlier events of its job.
    pub sequence: i64,
    /// The level: `info`, `warn` or `error`.
    pub level: String,
    /// The type: `message` or `metrics`.
    pub kind: String,
    /// The human-readable message.
    pub message: String,
    /// The metrics of a `metrics` event, or the machine-readable data of a `message`.
    pub data: Option<serde_json::Value>,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
}

/// Writes a message.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn message(tx: &mut PgConnection, job: JobId, level: Level, text: &str) -> Result<(), StoreError> {
    message_with(tx, job, level, text, &serde_json::Value::Null).await
}

/// Writes a message with machine-readable data; `null`: none.
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

/// Writes metrics, with a message that describes them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn metrics(tx: &mut PgConnection, job: JobId, text: &str, data: serde_json::Value) -> Result<(), StoreError> {
    insert(tx, job, (Level::Info, "metrics"), text, Some(&data)).await
}

/// Inserts an event. The job's row is locked before the number is assigned and until the transaction ends, so numbers
/// become visible in order.
async fn insert(
    tx: &mut PgConnection,
    job: JobId,
    (level, kind): (Level, &str),
    text: &str,
    data: Option<&serde_json::Value>,
) -> Result<(), StoreError> {
    let data = data.map(storable_json);
    let level: &str = level.into();
    sqlx::query!(
        "insert into job_event (job_event_id, job_id, level, type, message, data)
         select $1, job_id, $3, $4, $5, $6 from job where job_id = $2 for update",
        ids::id::<attune_domain::id::JobEvent>().uuid(),
        job.uuid(),
        level,
        kind,
        for_tenant(text),
        data.as_deref(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the number of an event of a project's job; `None`: it has no such event.
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

/// Returns the events of a project's job before the number `before`, newest first.
///
/// # Errors
/// [`StoreError::Database`]. A job of another project has no events: call [`crate::jobs::job::get`] first.
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

/// Returns the events of a project's job after the number `after`, oldest first.
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

/// The row as PostgreSQL returns it.
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
