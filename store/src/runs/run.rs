//! Runs: attempts at a job, from the claim to the end.
//!
//! A run holds its job while `job.run_id` names it. Locks are always taken in the order run, job.

use attune_domain::{
    id::{CheckpointId, JobId, NodeId, RunId},
    job::{JobEvent, JobState},
    run::Plan,
};
use sqlx::PgConnection;
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use crate::{
    error::{StoreError, json, to_json},
    ids,
    jobs::job::{self, Step},
    runs::node::{self, NewNode},
    tenancy::usage,
};

/// An attempt at a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The run's ID.
    pub run_id: RunId,
    /// The job's ID.
    pub job_id: JobId,
    /// The node's ID.
    pub node_id: NodeId,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The lease that fences its reports.
    pub run_lease: i64,
    /// The training plan.
    pub plan: Plan,
    /// The checkpoint to resume from; `None`: from the start.
    pub resume_id: Option<CheckpointId>,
    /// Seconds between its reports.
    pub heartbeat_seconds: u64,
    /// The state.
    pub state: RunState,
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum RunState {
    /// Launched; the trainer has not reported its start.
    Launching,
    /// Training.
    Running,
    /// Ended; no more reports are accepted.
    Ended,
}

/// A new run.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The job's ID.
    pub job_id: JobId,
    /// The node to reserve.
    pub node: NewNode,
    /// The training plan.
    pub plan: Plan,
    /// The checkpoint to resume from.
    pub resume_id: Option<CheckpointId>,
    /// The SHA-256 of its token.
    pub token_hash: Vec<u8>,
    /// Seconds between its reports.
    pub heartbeat_seconds: u64,
    /// The event message that the user reads.
    pub message: String,
}

/// Claims a queued job: reserves the node, inserts the run and assigns the job to it.
///
/// # Errors
/// [`StoreError::Illegal`]: the job is not queued any more. [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn create(tx: &mut PgConnection, new: &NewRun) -> Result<Run, StoreError> {
    job::step(tx, new.job_id, &Step::new(JobEvent::NodeClaimed, &new.message)).await?;
    let node_id = node::reserve(tx, &new.node).await?;
    let run_id: RunId = ids::id();
    let attempt = sqlx::query_scalar!(
        "with claimed as (
             update job set run_id = $1, attempts = attempts + 1, rung_plan = null where job_id = $2
             returning attempts)
         insert into run (run_id, job_id, node_id, attempt, run_lease, plan, token_hash, resume_id, heartbeat_seconds,
             state, predicted_peak)
         select $1, $2, $3::uuid, attempts, attempts::bigint, $4::jsonb, $5::bytea, $6::uuid, $7::integer, 'launching',
             $8::bigint
         from claimed returning attempt",
        run_id.uuid(),
        new.job_id.uuid(),
        node_id.uuid(),
        to_json("run.plan", &new.plan)?,
        new.token_hash,
        new.resume_id.map(|id| id.uuid()),
        new.heartbeat_seconds as i32,
        new.plan.predicted_peak.to_i64(),
    )
    .fetch_one(tx)
    .await?;
    Ok(Run {
        run_id,
        job_id: new.job_id,
        node_id,
        attempt,
        run_lease: i64::from(attempt),
        plan: new.plan.clone(),
        resume_id: new.resume_id,
        heartbeat_seconds: new.heartbeat_seconds,
        state: RunState::Launching,
    })
}

/// Begins the leases of launched runs: of many that were claimed at once, the last ones are launched a while later.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn begin_leases(tx: &mut PgConnection, runs: &[RunId]) -> Result<(), StoreError> {
    let runs: Vec<Uuid> = runs.iter().map(|run| run.uuid()).collect();
    sqlx::query!("update run set heartbeat_at = clock_timestamp() where run_id = any($1) and state <> 'ended'", &runs)
        .execute(tx)
        .await?;
    Ok(())
}

/// Returns a run by its ID.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, id: RunId) -> Result<Run, StoreError> {
    select(conn, Some(id), None).await?.ok_or(StoreError::NotFound("run"))
}

/// Returns the run whose trainer this token authenticates.
///
/// # Errors
/// [`StoreError::NotFound`]: no run has this token. [`StoreError::Database`].
pub async fn by_token(conn: &mut PgConnection, token: &str) -> Result<Run, StoreError> {
    select(conn, None, Some(ids::hash(token))).await?.ok_or(StoreError::NotFound("run"))
}

async fn select(
    conn: &mut PgConnection,
    id: Option<RunId>,
    token_hash: Option<Vec<u8>>,
) -> Result<Option<Run>, StoreError> {
    let row = sqlx::query!(
        "select run_id, job_id, node_id, attempt, run_lease, plan, resume_id, heartbeat_seconds, state from run
         where run_id = $1 or token_hash = $2",
        id.map(|id| id.uuid()),
        token_hash,
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Run {
        run_id: RunId::new(row.run_id),
        job_id: JobId::new(row.job_id),
        node_id: NodeId::new(row.node_id),
        attempt: row.attempt,
        run_lease: row.run_lease,
        plan: json("run.plan", row.plan)?,
        resume_id: row.resume_id.map(CheckpointId::new),
        heartbeat_seconds: u64::try_from(row.heartbeat_seconds).unwrap_or(10),
        state: state(&row.state),
    }))
}

pub(crate) fn state(name: &str) -> RunState {
    name.parse().unwrap_or(RunState::Ended)
}

/// A run that has not ended, for the reconciler.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveRun {
    /// The run's ID.
    pub run_id: RunId,
    /// The job's ID.
    pub job_id: JobId,
    /// The job's state.
    pub job_state: JobState,
    /// The node's ID.
    pub node_id: NodeId,
    /// The provider's handle of its process; `None`: the launch has not returned.
    pub handle: Option<String>,
    /// Seconds since its last report, by the database's clock.
    pub silent_seconds: f64,
    /// Seconds since the job last changed its state.
    pub unchanged_seconds: f64,
}

/// Returns the provider's runs that have not ended.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn active(conn: &mut PgConnection, provider: &str) -> Result<Vec<ActiveRun>, StoreError> {
    let rows = sqlx::query!(
        r#"select run.run_id, run.job_id, job.state as job_state, run.node_id, node.handle,
             extract(epoch from clock_timestamp() - run.heartbeat_at)::float8 as "silent_seconds!",
             extract(epoch from clock_timestamp() - job.pushed_at)::float8 as "unchanged_seconds!"
         from run join node using (node_id) join job on job.job_id = run.job_id
         where run.state <> 'ended' and node.provider = $1 order by run.run_id"#,
        provider,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(ActiveRun {
                run_id: RunId::new(row.run_id),
                job_id: JobId::new(row.job_id),
                job_state: job::state(&row.job_state)?,
                node_id: NodeId::new(row.node_id),
                handle: row.handle,
                silent_seconds: row.silent_seconds,
                unchanged_seconds: row.unchanged_seconds,
            })
        })
        .collect()
}

/// The outcome of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The adapter was published.
    Published,
    /// The trainer reported an error.
    Failed,
    /// The trainer obeyed a stop.
    Stopped,
    /// The process died, or stopped reporting.
    Lost,
    /// The run ran out of memory.
    OutOfMemory,
}

/// Ends a run, charges its usage and releases its node. The caller holds the run's row and steps the job.
pub(crate) async fn end(tx: &mut PgConnection, id: RunId, outcome: Outcome) -> Result<(), StoreError> {
    let outcome: &str = outcome.into();
    let node_id = sqlx::query_scalar!(
        "update run set state = 'ended', outcome = $2, ended_at = now() where run_id = $1 returning node_id",
        id.uuid(),
        outcome,
    )
    .fetch_one(&mut *tx)
    .await?;
    usage::charge_run(tx, id).await?;
    node::release(tx, NodeId::new(node_id)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_by_its_name_and_counts_as_ended_otherwise() {
        use RunState::{Ended, Launching, Running};
        assert_eq!(["launching", "running", "ended", "lost"].map(state), [Launching, Running, Ended, Ended]);
    }
}
