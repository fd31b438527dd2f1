//! Earlier runs, from which the rates of others are predicted.

use attune_domain::{
    architecture::Architecture,
    id::BaseModelId,
    memory::{BatchSplit, Workload},
    run::{Plan, processor::Processor},
    spec::TrainSpec,
    throughput::{Effort, JobFacts, JobTokens, PastRun, RunTimes, TokenCost, base_weights},
};
use attune_process::error_chain::chain;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::{StoreError, json},
    jobs::job::TokenFacts,
};

/// The number of recent runs among which the past runs are.
const RECENT_RUNS: i64 = 1000;

/// The number of past runs of a base on an offer.
const PER_OFFER: i64 = 5;

/// A run's row, with those of its job, its node and its base.
struct Row {
    base_model_id: Uuid,
    architecture: Value,
    provider: String,
    offer: String,
    processor: Option<Value>,
    plan: Value,
    spec: Value,
    token_facts: Value,
    steps: i64,
    step_ms: i64,
    node_seconds: Option<f64>,
}

/// Returns the newest runs of each base on each offer, newest first. The slots of an offer are one offer. A run whose
/// rows cannot be read is left out: it must not stop the dispatch of others.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn recent(conn: &mut PgConnection) -> Result<Vec<PastRun>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"with recent as (
             select run_id, job_id, node_id from run where steps > 0 and step_ms > 0 order by run_id desc limit $1),
         numbered as (
             select recent.run_id, row_number() over (
                 partition by job.base_model_id, node.provider, split_part(node.offer, '/', 1)
                 order by recent.run_id desc) as place
             from recent join node using (node_id) join job on job.job_id = recent.job_id
             where job.token_facts is not null)
         select job.base_model_id, base_model.architecture, node.provider, node.offer,
             run.placed -> 'processor' as "processor?", run.plan, run.steps, run.step_ms, job.spec,
             job.token_facts as "token_facts!",
             case when run.outcome = 'published' and run.resume_id is null
                 then extract(epoch from node.released_at - node.created_at)::float8 end as "node_seconds?"
         from numbered join run using (run_id) join node on node.node_id = run.node_id
             join job on job.job_id = run.job_id join base_model on base_model.base_model_id = job.base_model_id
         where numbered.place <= $2 order by run.run_id desc"#,
        RECENT_RUNS,
        PER_OFFER,
    )
    .fetch_all(conn)
    .await?;
    let known = |row| past_run(row).inspect_err(|error| tracing::error!(error = chain(error), "a run cannot be read"));
    Ok(rows.into_iter().filter_map(|row| known(row).ok()).collect())
}

fn past_run(row: Row) -> Result<PastRun, StoreError> {
    let architecture: Architecture = json("base_model.architecture", row.architecture)?;
    let train: TrainSpec = json("job.spec", row.spec)?;
    let plan: Plan = json("run.plan", row.plan)?;
    let TokenFacts { training, validation } = json("job.token_facts", row.token_facts)?;
    let processor: Option<Processor> = match row.processor {
        Some(processor) => json("run.placed", processor)?,
        None => None,
    };
    let longest_row = training.longest_row.max(validation.map_or(0, |facts| facts.longest_row)).max(1);
    let work = Workload { architecture: &architecture, train: &train, longest_row };
    let split = BatchSplit { micro_batch_size: plan.micro_batch_size, checkpointing: plan.checkpointing };
    let cost = TokenCost::of(work, JobFacts { training, validation }, split);
    let times = RunTimes {
        steps: row.steps.unsigned_abs(),
        step_seconds: row.step_ms as f64 / 1000.0,
        node_seconds: row.node_seconds,
    };
    let tokens = JobTokens::of(&train, training, validation);
    Ok(PastRun {
        base: BaseModelId::new(row.base_model_id),
        weights: base_weights(&architecture),
        provider: row.provider,
        offer: row.offer,
        threads: processor.as_ref().map_or(plan.threads, |found| found.threads),
        processor: processor.map(|found| found.name),
        effort: Effort::of(times, cost, tokens, train.total_steps(training.rows)),
    })
}
