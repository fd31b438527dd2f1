//! Everything that decisions about waiting jobs need from their rows, in one statement for all of them. For the
//! platform's own work.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    id::{BaseModelId, CheckpointId, JobId},
    job::JobState,
    run::{Plan, traceparent::Traceparent},
    spec::TrainSpec,
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::{StoreError, json},
    jobs::{
        job::{self, TokenFacts},
        terms::{JobTerms, UNKNOWN_SECONDS},
    },
};

/// A job that may start.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The job's ID.
    pub job_id: JobId,
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The state.
    pub state: JobState,
    /// The settings of the training.
    pub spec: TrainSpec,
    /// The token counts of its files.
    pub token_facts: Option<TokenFacts>,
    /// The completed optimizer steps.
    pub steps_done: i64,
    /// All optimizer steps.
    pub total_steps: Option<i64>,
    /// The plan that the next run keeps: that of the ladder after a run out of memory, or of the last run; `None`: it
    /// has had no run.
    pub kept: Option<Plan>,
    /// The memory that an offer must exceed: a run on one with as much ran out of memory. `None`: none.
    pub above: Option<Bytes>,
    /// The terms for its offer.
    pub terms: JobTerms,
    /// The expected duration, in seconds.
    pub seconds: f64,
    /// `true` if that is a prediction for the job, and not the value of a job of which nothing is known.
    pub is_measured: bool,
    /// The time of the reading by the database's clock, in Unix seconds.
    pub now: f64,
    /// The checkpoint to resume from; `None`: from the start.
    pub resume_id: Option<CheckpointId>,
    /// `true` if a price cap or a budget limits its cost.
    pub has_cost_limit: bool,
    /// The span of the request that created it; `None`: the request was not traced.
    pub traceparent: Option<Traceparent>,
}

/// Returns the jobs of these IDs. A job that does not exist has no entry; one whose row this release does not
/// understand has the error as its entry, so that it does not hold back the others.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn load(
    conn: &mut PgConnection,
    ids: &[JobId],
) -> Result<HashMap<JobId, Result<Candidate, StoreError>>, StoreError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"select job.job_id, job.base_model_id, job.state, job.spec, job.token_facts, job.steps_done, job.total_steps,
             job.attempts, job.memory_above, job.limits, job.slowness, job.traceparent,
             coalesce(job.expected_seconds, $2) as "seconds!",
             (job.expected_seconds is not null and job.token_facts is not null) as "is_measured!",
             extract(epoch from clock_timestamp())::float8 as "now!",
             coalesce(job.rung_plan, last.plan) as kept, newest.checkpoint_id as "resume_id?",
             (job.max_micro_usd is not null
                 or exists (select from budget where budget.project_id = job.project_id)) as "has_cost_limit!"
         from job
             left join lateral (select plan from run where run.job_id = job.job_id order by attempt desc limit 1)
                 as last on job.attempts > 0
             left join lateral (select checkpoint_id from checkpoint where checkpoint.job_id = job.job_id
                 order by step desc limit 1) as newest on true
         where job.job_id = any($1)"#,
        &ids,
        UNKNOWN_SECONDS,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId::new(row.job_id), Candidate::try_from(row))).collect())
}

/// The row as PostgreSQL returns it.
struct Row {
    job_id: Uuid,
    base_model_id: Uuid,
    state: String,
    spec: Value,
    token_facts: Option<Value>,
    steps_done: i64,
    total_steps: Option<i64>,
    attempts: i32,
    memory_above: Option<i64>,
    limits: Option<Value>,
    slowness: Option<Value>,
    traceparent: Option<String>,
    seconds: f64,
    is_measured: bool,
    now: f64,
    kept: Option<Value>,
    resume_id: Option<Uuid>,
    has_cost_limit: bool,
}

impl TryFrom<Row> for Candidate {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            job_id: JobId::new(row.job_id),
            base_model_id: BaseModelId::new(row.base_model_id),
            state: job::state(&row.state)?,
            spec: json("job.spec", row.spec)?,
            token_facts: row.token_facts.map(|facts| json("job.token_facts", facts)).transpose()?,
            steps_done: row.steps_done,
            total_steps: row.total_steps,
            kept: row.kept.map(|plan| json("run.plan", plan)).transpose()?,
            above: row.memory_above.map(Bytes::from_i64),
            terms: JobTerms::read(row.limits, row.slowness, row.attempts > 0)?,
            seconds: row.seconds,
            is_measured: row.is_measured,
            now: row.now,
            resume_id: row.resume_id.map(CheckpointId::new),
            has_cost_limit: row.has_cost_limit,
            traceparent: row.traceparent.and_then(|text| text.parse().ok()),
        })
    }
}
