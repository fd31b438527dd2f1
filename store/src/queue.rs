//! Messages to the scheduler. A message only names a row: its handler reads the row, returns without an error if there
//! is nothing to do, and is idempotent. The reconciler pushes a lost one again.

use apalis::prelude::TaskBuilder;
use attune_domain::id::{ExportId, JobId, ReplicaId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::PgConnection;

use crate::{error::StoreError, sweep_batch::Batch};

/// A kind of message.
pub trait Task: Serialize + DeserializeOwned + Clone + Send + Sync + Unpin + 'static {
    /// The name of its queue.
    const QUEUE: &'static str;
}

/// A request to validate a job: to tokenize and check the rows of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateJob {
    /// The job's ID.
    pub job_id: JobId,
}

/// Wakes a pass over the queue, which starts the jobs that the plan chooses: this one, others, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DispatchJob {
    /// The ID of a queued job; the pass plans the whole queue, and does not read it.
    pub job_id: JobId,
}

/// A request to launch a wanted replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureReplica {
    /// The replica's ID.
    pub replica_id: ReplicaId,
}

/// A request to launch a queued export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureExport {
    /// The export's ID.
    pub export_id: ExportId,
}

impl Task for ValidateJob {
    const QUEUE: &'static str = "validate-job";
}

impl Task for DispatchJob {
    const QUEUE: &'static str = "dispatch-job";
}

impl Task for EnsureReplica {
    const QUEUE: &'static str = "ensure-replica";
}

impl Task for EnsureExport {
    const QUEUE: &'static str = "ensure-export";
}

/// Pushes `task` to its queue inside the caller's transaction: both commit, or neither.
///
/// One attempt only: apalis retries without a delay, so the reconciler retries instead. The message is due at once by
/// the database's clock: apalis would take the pusher's, and a fast one would delay the message.
///
/// # Errors
/// [`StoreError::Queue`], [`StoreError::Database`].
pub async fn push<T: Task>(tx: &mut PgConnection, task: &T) -> Result<(), StoreError> {
    let args = serde_json::to_vec(task).map_err(|e| StoreError::Queue(e.into()))?;
    let now =
        sqlx::query_scalar!(r#"select floor(extract(epoch from now()))::int8 as "now!""#).fetch_one(&mut *tx).await?;
    let message = TaskBuilder::new(args).max_attempts(1).run_at_timestamp(now.unsigned_abs()).build();
    apalis_postgres::queries::push_tasks(tx, T::QUEUE, vec![message]).await.map_err(|e| StoreError::Queue(e.into()))
}

/// Deletes messages that were handled more than an hour ago; apalis keeps them indefinitely.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn sweep(conn: &mut PgConnection) -> Result<Batch, StoreError> {
    // Not a macro: the table is apalis's, and does not exist in the database against which `make sqlx` checks our
    // queries.
    let swept = sqlx::query(
        "delete from apalis.jobs where status in ('Done', 'Failed', 'Killed') and done_at < now() - interval '1 hour'",
    )
    .execute(conn)
    .await?;
    Ok(Batch { gone: swept.rows_affected(), has_more: false })
}
