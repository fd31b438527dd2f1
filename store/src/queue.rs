//! Messages to the scheduler. A message only names a row: whoever takes it reads the row, returns quietly if there is
//! nothing to do, and is safe twice. A lost one is pushed again by the reconciler.

use apalis::prelude::TaskBuilder;
use attune_domain::id::{JobId, ReplicaId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::PgConnection;

use crate::{error::StoreError, sweep_batch::Batch};

/// A kind of message.
pub trait Task: Serialize + DeserializeOwned + Clone + Send + Sync + Unpin + 'static {
    /// The queue it goes through.
    const QUEUE: &'static str;
}

/// The rows of a job's files are to be turned into tokens and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateJob {
    /// Which job.
    pub job_id: JobId,
}

/// A queued job wants a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DispatchJob {
    /// Which job.
    pub job_id: JobId,
}

/// A wanted replica is to be launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureReplica {
    /// Which replica.
    pub replica_id: ReplicaId,
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

/// Puts `task` on its queue inside the caller's transaction: both are kept, or neither.
///
/// One attempt only: apalis repeats without a pause, so repeating is the reconciler's.
///
/// # Errors
/// [`StoreError::Queue`].
pub async fn push<T: Task>(tx: &mut PgConnection, task: &T) -> Result<(), StoreError> {
    let args = serde_json::to_vec(task).map_err(|e| StoreError::Queue(e.into()))?;
    let message = TaskBuilder::new(args).max_attempts(1).build();
    apalis_postgres::queries::push_tasks(tx, T::QUEUE, vec![message]).await.map_err(|e| StoreError::Queue(e.into()))
}

/// Forgets messages that were dealt with more than an hour ago; apalis keeps them for ever.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn sweep(conn: &mut PgConnection) -> Result<Batch, StoreError> {
    // Not a macro: the table is apalis's, and is not there where `make sqlx` checks ours.
    let swept = sqlx::query(
        "delete from apalis.jobs where status in ('Done', 'Failed', 'Killed') and done_at < now() - interval '1 hour'",
    )
    .execute(conn)
    .await?;
    Ok(Batch { gone: swept.rows_affected(), has_more: false })
}
