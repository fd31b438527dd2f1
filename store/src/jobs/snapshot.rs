//! The state of the queue at one moment: the input of `attune_domain::queue::plan`. Read under the scheduler's
//! placement lock, by the database's clock. For the platform's own work.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    id::{JobId, ProjectId},
    job::{JobState, Priority},
    offer::Slowness,
    queue::{ProjectShare, RunningJob, STOP_SECONDS, WaitingJob},
    run::Plan,
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::{StoreError, json, named},
    jobs::{
        job,
        terms::{self, JobTerms, UNKNOWN_SECONDS},
    },
    tenancy::project_queue,
};

/// The maximum number of waiting jobs of one project that are planned, so that no project's jobs displace another's.
/// The others have no position until they move up.
pub const PLANNED_PER_PROJECT: i64 = 2000;

/// The seconds that a stop at a checkpoint costs: the model is loaded again.
const RESTART_SECONDS: f64 = 10.0;

/// The queue without the offers, which are the providers'.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The present time, in Unix seconds.
    pub now: f64,
    /// The waiting jobs that are due and measured.
    pub waiting: Vec<WaitingJob>,
    /// The jobs that hold a node.
    pub running: Vec<RunningJob>,
    /// The projects of both.
    pub projects: Vec<ProjectShare>,
    /// The priorities of the waiting jobs.
    pub priorities: HashMap<JobId, Priority>,
    /// The plans that waiting jobs began with.
    pub kept: HashMap<JobId, Plan>,
    /// The terms of the waiting jobs that have any.
    pub terms: HashMap<JobId, JobTerms>,
}

/// Loads the state of the queue, with at most `per_project` waiting jobs of each project.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn load(conn: &mut PgConnection, per_project: i64) -> Result<Snapshot, StoreError> {
    let now = sqlx::query_scalar!(r#"select extract(epoch from clock_timestamp())::float8 as "now!""#)
        .fetch_one(&mut *conn)
        .await?;
    let mut snapshot = Snapshot { now, ..Snapshot::default() };
    load_waiting(conn, per_project, &mut snapshot).await?;
    load_running(conn, &mut snapshot).await?;
    snapshot.projects = project_queue::shares(conn).await?;
    Ok(snapshot)
}

async fn load_waiting(conn: &mut PgConnection, per_project: i64, into: &mut Snapshot) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"select queued.job_id as "job_id!", queued.project_id as "project_id!", queued.priority as "priority!",
             queued.since as "since!", queued.need_bytes as "need_bytes!", queued.seconds as "seconds!",
             queued.preemptions as "preemptions!", coalesce(queued.rung_plan, last.plan) as "kept?",
             queued.attempts as "attempts!", queued.limits as "limits?", queued.slowness as "slowness?"
         from (select job_id, project_id, priority, need_bytes, attempts, preemptions, rung_plan, limits, slowness,
                 extract(epoch from coalesce(queued_at, created_at))::float8 as since,
                 coalesce(expected_seconds, $2) as seconds,
                 row_number() over (partition by project_id
                     order by array_position(array['high', 'normal', 'low'], priority), queued_at, job_id) as place
             from job
             where state = 'queued' and need_bytes is not null and (retry_at is null or retry_at <= now())) as queued
             left join lateral (select plan from run where run.job_id = queued.job_id order by attempt desc limit 1)
                 as last on queued.attempts > 0
         where queued.place <= $1 order by queued.job_id"#,
        per_project,
        UNKNOWN_SECONDS,
    )
    .fetch_all(conn)
    .await?;
    for row in rows {
        let job = JobId::new(row.job_id);
        let priority: Priority = named("job.priority", &row.priority, "priority")?;
        into.priorities.insert(job, priority);
        if let Some(plan) = row.kept {
            into.kept.insert(job, json("run.plan", plan)?);
        }
        if row.limits.is_some() || row.slowness.is_some() {
            into.terms.insert(job, JobTerms::read(row.limits, row.slowness, row.attempts > 0)?);
        }
        into.waiting.push(WaitingJob {
            job,
            project: ProjectId::new(row.project_id),
            priority: priority.rank(),
            since: row.since,
            need: Bytes::from_i64(row.need_bytes),
            seconds: row.seconds,
            was_preempted: row.preemptions > 0,
            offers: None,
        });
    }
    Ok(())
}

async fn load_running(conn: &mut PgConnection, into: &mut Snapshot) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"select job.job_id, job.project_id, job.priority, job.preemptible, job.state,
             node.provider, node.offer, node.memory,
             -- A trainer that runs stops with a checkpoint; one that starts has none.
             ($3::float8 + case when job.state = 'provisioning'
                 then $4::float8 - extract(epoch from node.created_at)::float8 else 0 end)::float8 as "lost_seconds!",
             (case when job.state in ('pausing', 'cancelling') then $4::float8 + $2::float8
                 when run.steps > 0 and job.total_steps is not null
                     then $4::float8
                         + greatest(job.total_steps - job.steps_done, 0) * run.step_ms::float8 / run.steps / 1000
                 else extract(epoch from node.created_at)::float8 + coalesce(job.expected_seconds, $1) end)::float8 as "ends_at!"
         from run join node using (node_id) join job on job.job_id = run.job_id
         where run.state <> 'ended' order by job.job_id"#,
        UNKNOWN_SECONDS,
        STOP_SECONDS,
        RESTART_SECONDS,
        into.now,
    )
    .fetch_all(conn)
    .await?;
    for row in rows {
        let priority: Priority = named("job.priority", &row.priority, "priority")?;
        let is_held = matches!(job::state(&row.state)?, JobState::Provisioning | JobState::Running);
        into.running.push(RunningJob {
            job: JobId::new(row.job_id),
            project: ProjectId::new(row.project_id),
            priority: priority.rank(),
            is_preemptible: row.preemptible && is_held,
            offer: (row.provider, row.offer),
            memory: Bytes::from_i64(row.memory),
            ends_at: row.ends_at,
            lost_seconds: row.lost_seconds,
        });
    }
    Ok(())
}

/// Returns waiting jobs that are due and whose memory and duration are not computed; projects take turns, and the
/// oldest of each goes first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unmeasured(conn: &mut PgConnection, limit: i64) -> Result<Vec<JobId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "select job_id from job
         where state = 'queued' and need_bytes is null and (retry_at is null or retry_at <= now())
         order by row_number() over (partition by project_id order by job_id), job_id limit $1",
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(JobId::new).collect())
}

/// The measures of a waiting job.
#[derive(Debug, Clone, PartialEq)]
pub struct Measures {
    /// The memory that it needs at least, with the default margin.
    pub need: Bytes,
    /// The expected duration of its run, in seconds.
    pub seconds: f64,
    /// The duration on each offer, relative to the expected duration; empty: the same on all.
    pub slowness: Vec<Slowness>,
}

/// Stores the measures of waiting jobs, in one statement. A job that is not queued any more is left unchanged.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn measure(conn: &mut PgConnection, measured: &[(JobId, Measures)]) -> Result<(), StoreError> {
    let jobs: Vec<Uuid> = measured.iter().map(|(job, _)| job.uuid()).collect();
    let needs: Vec<i64> = measured.iter().map(|(_, measures)| measures.need.to_i64()).collect();
    let seconds: Vec<f64> = measured.iter().map(|(_, measures)| measures.seconds).collect();
    let slowness = measured.iter().map(|(_, measures)| terms::write_slowness(&measures.slowness));
    let slowness = slowness.collect::<Result<Vec<Option<Value>>, StoreError>>()?;
    sqlx::query!(
        "update job set need_bytes = measured.need, expected_seconds = measured.seconds, slowness = measured.slowness
         from unnest($1::uuid[], $2::bigint[], $3::float8[], $4::jsonb[]) as measured (job_id, need, seconds, slowness)
         where job.job_id = measured.job_id and job.state = 'queued'",
        &jobs,
        &needs,
        &seconds,
        &slowness as &[Option<Value>],
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes a waiting job's measures: the next pass computes them for the offers of that time.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn forget_measures(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query!("update job set need_bytes = null where job_id = $1 and state = 'queued'", job.uuid())
        .execute(conn)
        .await?;
    Ok(())
}
