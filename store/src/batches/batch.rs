//! Batches. `step` is the only way that their state changes. A worker holds a batch by a lease, and every write of a
//! worker requires that lease, so that a worker that was declared lost can write nothing more.

use attune_domain::{
    batch::{BatchEndpoint, BatchEvent, BatchState, Defect},
    event::EventType,
    id::{BatchId, FileId, ProjectId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::{StoreError, json, named, to_json},
    ids,
    webhooks::outbox,
};

/// A batch's row.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct Batch {
    pub batch_id: BatchId,
    pub project_id: ProjectId,
    pub input_file_id: FileId,
    pub endpoint: BatchEndpoint,
    pub completion_window: String,
    pub metadata: Option<serde_json::Value>,
    pub state: BatchState,
    pub defects: Vec<Defect>,
    pub total: i32,
    pub completed: i32,
    pub failed: i32,
    pub output_file_id: Option<FileId>,
    pub error_file_id: Option<FileId>,
    pub output_expires_seconds: Option<i32>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub in_progress_at: Option<DateTime<Utc>>,
    pub finalizing_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub failed_at: Option<DateTime<Utc>>,
    pub expired_at: Option<DateTime<Utc>>,
    pub cancelling_at: Option<DateTime<Utc>>,
    pub cancelled_at: Option<DateTime<Utc>>,
}

/// A new batch; every field is checked.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct NewBatch {
    pub input_file_id: FileId,
    pub endpoint: BatchEndpoint,
    pub completion_window: String,
    pub metadata: Option<serde_json::Value>,
    pub output_expires_seconds: Option<i32>,
}

/// The row as PostgreSQL returns it.
struct Row {
    batch_id: Uuid,
    project_id: Uuid,
    input_file_id: Uuid,
    endpoint: String,
    completion_window: String,
    metadata: Option<serde_json::Value>,
    state: String,
    defects: serde_json::Value,
    total: i32,
    completed: i32,
    failed: i32,
    output_file_id: Option<Uuid>,
    error_file_id: Option<Uuid>,
    output_expires_seconds: Option<i32>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    in_progress_at: Option<DateTime<Utc>>,
    finalizing_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    failed_at: Option<DateTime<Utc>>,
    expired_at: Option<DateTime<Utc>>,
    cancelling_at: Option<DateTime<Utc>>,
    cancelled_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Batch {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            batch_id: BatchId::new(row.batch_id),
            project_id: ProjectId::new(row.project_id),
            input_file_id: FileId::new(row.input_file_id),
            endpoint: named("batch.endpoint", &row.endpoint, "endpoint")?,
            completion_window: row.completion_window,
            metadata: row.metadata,
            state: state(&row.state)?,
            defects: json("batch.defects", row.defects)?,
            total: row.total,
            completed: row.completed,
            failed: row.failed,
            output_file_id: row.output_file_id.map(FileId::new),
            error_file_id: row.error_file_id.map(FileId::new),
            output_expires_seconds: row.output_expires_seconds,
            created_at: row.created_at,
            expires_at: row.expires_at,
            in_progress_at: row.in_progress_at,
            finalizing_at: row.finalizing_at,
            completed_at: row.completed_at,
            failed_at: row.failed_at,
            expired_at: row.expired_at,
            cancelling_at: row.cancelling_at,
            cancelled_at: row.cancelled_at,
        })
    }
}

pub(crate) fn state(name: &str) -> Result<BatchState, StoreError> {
    named("batch.state", name, "state")
}

/// Inserts a batch.
///
/// # Errors
/// [`StoreError::Conflict`]: its file does not exist any more. [`StoreError::Database`].
pub async fn insert(tx: &mut PgConnection, project: ProjectId, new: &NewBatch) -> Result<Batch, StoreError> {
    let id: BatchId = ids::id();
    sqlx::query!(
        "insert into batch (batch_id, project_id, input_file_id, endpoint, completion_window, metadata, state,
             output_expires_seconds)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        id.uuid(),
        project.uuid(),
        new.input_file_id.uuid(),
        new.endpoint.path(),
        new.completion_window,
        new.metadata,
        BatchState::Validating.name(),
        new.output_expires_seconds,
    )
    .execute(&mut *tx)
    .await?;
    get(tx, project, id).await
}

/// Returns a project's batch.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or is another project's. [`StoreError::Database`].
pub async fn get(db: &mut PgConnection, project: ProjectId, id: BatchId) -> Result<Batch, StoreError> {
    select(db, Some(project), Some(id), None, 1).await?.pop().ok_or(StoreError::NotFound("batch"))
}

/// Returns a project's batches, newest first: at most `limit` after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    after: Option<BatchId>,
    limit: i64,
) -> Result<Vec<Batch>, StoreError> {
    select(db, Some(project), None, after, limit).await
}

pub(crate) async fn select(
    db: &mut PgConnection,
    project: Option<ProjectId>,
    id: Option<BatchId>,
    after: Option<BatchId>,
    limit: i64,
) -> Result<Vec<Batch>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select batch_id, project_id, input_file_id, endpoint, completion_window, metadata, state, defects, total,
             completed, failed, output_file_id, error_file_id, output_expires_seconds, created_at, expires_at,
             in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at, cancelled_at
         from batch
         where ($1::uuid is null or project_id = $1) and ($2::uuid is null or batch_id = $2)
             and ($3::uuid is null or batch_id < $3)
         order by batch_id desc limit $4",
        project.map(|id| id.uuid()),
        id.map(|id| id.uuid()),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Batch::try_from).collect()
}

/// Cancels a project's batch on its user's request. One that has ended keeps its state.
///
/// # Errors
/// [`StoreError::NotFound`]; [`StoreError::Batch`]: it has ended. [`StoreError::Database`].
pub async fn cancel(tx: &mut PgConnection, project: ProjectId, id: BatchId) -> Result<Batch, StoreError> {
    get(tx, project, id).await?;
    step(tx, id, None, BatchEvent::CancelAsked).await?;
    get(tx, project, id).await
}

/// Applies an event to a batch, on behalf of the worker that holds it, or of its user.
///
/// # Errors
/// [`StoreError::NotFound`]; [`StoreError::Stale`]: another worker holds it. [`StoreError::Batch`]: the event is
/// illegal in this state. [`StoreError::Database`].
pub async fn step(
    tx: &mut PgConnection,
    id: BatchId,
    worker: Option<Uuid>,
    event: BatchEvent,
) -> Result<BatchState, StoreError> {
    let row = sqlx::query!("select state, worker, project_id from batch where batch_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("batch"))?;
    if worker.is_some() && worker != row.worker {
        return Err(StoreError::Stale);
    }
    let from = state(&row.state)?;
    let next = from.apply(event)?;
    if next == from {
        return Ok(from);
    }
    sqlx::query!(
        "update batch set state = $2,
             in_progress_at = case when $2 = 'in_progress' then now() else in_progress_at end,
             finalizing_at = case when $2 = 'finalizing' then now() else finalizing_at end,
             completed_at = case when $2 = 'completed' then now() else completed_at end,
             failed_at = case when $2 = 'failed' then now() else failed_at end,
             expired_at = case when $2 = 'expired' then now() else expired_at end,
             cancelling_at = case when $2 = 'cancelling' then now() else cancelling_at end,
             cancelled_at = case when $2 = 'cancelled' then now() else cancelled_at end,
             next_try_at = case when $2 = 'cancelling' then now() else next_try_at end
         where batch_id = $1",
        id.uuid(),
        next.name(),
    )
    .execute(&mut *tx)
    .await?;
    if let Some(event) = told(next) {
        outbox::push(tx, ProjectId::new(row.project_id), event, &serde_json::json!({ "id": id })).await?;
    }
    Ok(next)
}

/// Returns the webhook event for a step into this state.
const fn told(state: BatchState) -> Option<EventType> {
    match state {
        BatchState::Completed => Some(EventType::BatchCompleted),
        BatchState::Failed => Some(EventType::BatchFailed),
        BatchState::Cancelled => Some(EventType::BatchCancelled),
        BatchState::Expired => Some(EventType::BatchExpired),
        _ => None,
    }
}

/// Accepts the input file, which is valid and has `total` requests.
///
/// # Errors
/// As [`step`].
pub async fn accept(tx: &mut PgConnection, id: BatchId, worker: Uuid, total: i32) -> Result<(), StoreError> {
    step(tx, id, Some(worker), BatchEvent::FileAccepted).await?;
    sqlx::query!("update batch set total = $2 where batch_id = $1", id.uuid(), total).execute(tx).await?;
    Ok(())
}

/// Refuses the input file.
///
/// # Errors
/// As [`step`].
pub async fn refuse(tx: &mut PgConnection, id: BatchId, worker: Uuid, defects: &[Defect]) -> Result<(), StoreError> {
    end_with_defects(tx, (id, worker), BatchEvent::FileRefused, defects).await
}

/// Fails the batch without files, because its processing fails in the same way each time.
///
/// # Errors
/// As [`step`].
pub async fn give_up(tx: &mut PgConnection, id: BatchId, worker: Uuid, why: &Defect) -> Result<(), StoreError> {
    end_with_defects(tx, (id, worker), BatchEvent::GivenUp, std::slice::from_ref(why)).await?;
    sqlx::query!("delete from batch_answer where batch_id = $1", id.uuid()).execute(tx).await?;
    Ok(())
}

async fn end_with_defects(
    tx: &mut PgConnection,
    (id, worker): (BatchId, Uuid),
    event: BatchEvent,
    defects: &[Defect],
) -> Result<(), StoreError> {
    step(tx, id, Some(worker), event).await?;
    let defects = to_json("batch.defects", &defects)?;
    sqlx::query!("update batch set defects = $2, worker = null where batch_id = $1", id.uuid(), defects)
        .execute(tx)
        .await?;
    Ok(())
}

/// The end of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchEnd {
    /// The event that ends it.
    pub event: BatchEvent,
    /// The file with the successful responses, if there are any.
    pub output: Option<FileId>,
    /// The file with the errors, if there are any.
    pub errors: Option<FileId>,
    /// The reason, if it failed.
    pub defect: Option<Defect>,
}

/// Ends the batch with its files, and deletes the rows of its results. The total of a batch whose file was not checked
/// is the number of its results.
///
/// # Errors
/// As [`step`].
pub async fn finish(tx: &mut PgConnection, id: BatchId, worker: Uuid, end: &BatchEnd) -> Result<(), StoreError> {
    step(tx, id, Some(worker), end.event).await?;
    let defects = end.defect.as_ref().map(|defect| to_json("batch.defects", &[defect])).transpose()?;
    sqlx::query!(
        "update batch set output_file_id = $2, error_file_id = $3, defects = coalesce($4, defects), worker = null,
             total = greatest(total, completed + failed) where batch_id = $1",
        id.uuid(),
        end.output.map(|id| id.uuid()),
        end.errors.map(|id| id.uuid()),
        defects,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("delete from batch_answer where batch_id = $1", id.uuid()).execute(tx).await?;
    Ok(())
}
