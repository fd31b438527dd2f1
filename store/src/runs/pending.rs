//! Processes that a provider has accepted and not started yet, such as a job in the queue of a cluster.

use attune_domain::{
    id::{JobId, ReplicaId, RunId},
    run::process::WaitKind,
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    jobs::job_event::{self, Level},
};

/// The `code` of the events of a run whose process waits at its provider.
pub const PROVIDER_PENDING: &str = "provider_pending";

/// The maximum number of these events of a run.
pub const MOST_EVENTS: i64 = 20;

/// Stores that the process of a run waits at its provider, and the reason, which its job then shows. The run's lease
/// begins again, and until its trainer has started so does the time that is charged. An event reports the first reason
/// of a run, and each one of another kind than that before, up to [`MOST_EVENTS`].
///
/// A run that has ended is left unchanged.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn run(tx: &mut PgConnection, run: RunId, kind: WaitKind, reason: &str) -> Result<(), StoreError> {
    let job = sqlx::query_scalar!(
        r#"with waits as (
             update run set heartbeat_at = clock_timestamp() where run_id = $1 and state <> 'ended'
             returning job_id, node_id, state),
         uncharged as (
             update node set created_at = clock_timestamp()
             from waits where node.node_id = waits.node_id and waits.state = 'launching')
         select job_id as "job_id!" from waits"#,
        run.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(job) = job else { return Ok(()) };
    let changed = sqlx::query!(
        "update job set waiting_reason = $3
         where job_id = $1 and run_id = $2 and waiting_reason is distinct from $3",
        job,
        run.uuid(),
        reason,
    )
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Ok(());
    }
    let known = sqlx::query!(
        r#"select count(*) as "events!", (array_agg(data ->> 'reason' order by sequence desc))[1] as last
         from job_event where job_id = $1 and data ->> 'code' = $2 and data ->> 'run_id' = $3"#,
        job,
        PROVIDER_PENDING,
        run.to_string(),
    )
    .fetch_one(&mut *tx)
    .await?;
    if known.events >= MOST_EVENTS || known.last.as_deref() == Some(kind.name()) {
        return Ok(());
    }
    let data = json!({ "code": PROVIDER_PENDING, "reason": kind.name(), "run_id": run.to_string() });
    job_event::message_with(tx, JobId::new(job), Level::Info, reason, &data).await
}

/// Clears the reasons of jobs whose runs' processes wait no longer. The jobs find the rows by their primary key: every
/// pass of the reconciler calls this.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn started(conn: &mut PgConnection, runs: &[(JobId, RunId)]) -> Result<(), StoreError> {
    let (jobs, runs): (Vec<_>, Vec<_>) = runs.iter().map(|(job, run)| (job.uuid(), run.uuid())).unzip();
    sqlx::query!(
        "update job set waiting_reason = null
         where job_id = any($1) and run_id = any($2) and waiting_reason is not null",
        &jobs,
        &runs,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// As [`run`], for the process of a replica.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn replica(conn: &mut PgConnection, replica: ReplicaId) -> Result<(), StoreError> {
    sqlx::query!(
        "with waits as (
             update replica set heartbeat_at = clock_timestamp() where replica_id = $1 and state <> 'ended'
             returning node_id, state)
         update node set created_at = clock_timestamp()
         from waits where node.node_id = waits.node_id and waits.state <> 'ready'",
        replica.uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}
