//! Usage and its cost. Rows are only ever added.

use attune_domain::id::{AdapterVersionId, ApiKeyId, ProjectId, RunId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use strum::IntoStaticStr;

use crate::{error::StoreError, ids};

/// Charges a run that ends, in the transaction of its end: the time of its node, and the tokens that no run of its job
/// had trained on before.
pub(crate) async fn charge_run(tx: &mut PgConnection, run: RunId) -> Result<(), StoreError> {
    sqlx::query!(
        "with used as (
             select job.job_id, job.project_id, job.api_key_id, base_model.name as model,
                 job.top_tokens - job.charged_tokens as tokens, job.micro_usd_per_million_tokens as token_price,
                 (extract(epoch from clock_timestamp() - node.created_at) * 1000)::bigint as node_ms,
                 node.micro_usd_per_hour as node_price
             from run join job on job.job_id = run.job_id join node using (node_id)
                 join base_model using (base_model_id)
             where run.run_id = $1),
         charged as (
             update job set charged_tokens = top_tokens, node_ms = job.node_ms + used.node_ms,
                 micro_usd = job.micro_usd
                     + round(used.node_ms::numeric * used.node_price / 3600000
                         + used.tokens::numeric * used.token_price / 1000000)::bigint
             from used where job.job_id = used.job_id)
         insert into usage (usage_id, project_id, kind, api_key_id, model, job_id, run_id, trained_tokens, node_ms,
             micro_usd)
         select $2, project_id, 'training', api_key_id, model, job_id, $1, tokens, node_ms,
             round(node_ms::numeric * node_price / 3600000 + tokens::numeric * token_price / 1000000)::bigint
         from used",
        run.uuid(),
        ids::uuid(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The time of a node that a refund includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum NodeTime {
    /// None: the run trained what was wanted.
    Nothing,
    /// The time after the run's last checkpoint: the run was interrupted, and that work is done again.
    AfterCheckpoint,
    /// The whole time: the run failed because of its plan.
    Whole,
}

/// Refunds an ended run, which is charged: the tokens of its job's steps after `kept_step`, which are lost or dropped,
/// and this time of its node. A step that is trained on again counts again.
pub(crate) async fn refund_run(
    tx: &mut PgConnection,
    run: RunId,
    kept_step: u64,
    time: NodeTime,
) -> Result<(), StoreError> {
    let time: &str = time.into();
    sqlx::query!(
        "with lost as (
             select job.job_id, job.project_id, job.api_key_id, base_model.name as model,
                 case $4::text when 'whole' then charge.node_ms
                     when 'after_checkpoint' then least(charge.node_ms, (extract(epoch from clock_timestamp()
                         - greatest(node.created_at, (select max(created_at) from checkpoint
                             where checkpoint.run_id = run.run_id))) * 1000)::bigint)
                     else 0 end as node_ms, node.micro_usd_per_hour as node_price,
                 job.micro_usd_per_million_tokens as token_price,
                 least(job.charged_tokens, coalesce((
                     select sum(tokens) from (
                         select max((data ->> 'trained_tokens')::bigint) as tokens from job_event
                         where job_event.job_id = job.job_id and type = 'metrics'
                             and data ->> 'trained_tokens' is not null
                             and (data ->> 'step')::bigint > $3 and (data ->> 'step')::bigint <= job.top_step
                         group by data ->> 'step') as trained), 0))::bigint as tokens
             from run join job on job.job_id = run.job_id join node using (node_id)
                 join base_model using (base_model_id)
                 join usage as charge on charge.run_id = run.run_id and charge.kind = 'training'
             where run.run_id = $1),
         priced as (
             select *, round(node_ms::numeric * node_price / 3600000 + tokens::numeric * token_price / 1000000)::bigint
                 as micro_usd
             from lost where node_ms > 0 or tokens > 0),
         refunded as (
             update job set top_step = least(job.top_step, $3), top_tokens = job.top_tokens - priced.tokens,
                 charged_tokens = job.charged_tokens - priced.tokens, node_ms = job.node_ms - priced.node_ms,
                 micro_usd = job.micro_usd - priced.micro_usd
             from priced where job.job_id = priced.job_id)
         insert into usage (usage_id, project_id, kind, api_key_id, model, job_id, run_id, trained_tokens, node_ms,
             micro_usd)
         select $2, project_id, 'refund', api_key_id, model, job_id, $1, -tokens, -node_ms, -micro_usd from priced",
        run.uuid(),
        ids::uuid(),
        kept_step as i64,
        time,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Aggregated usage of one model by one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The project's ID.
    pub project_id: ProjectId,
    /// The key of the requests.
    pub api_key_id: Option<ApiKeyId>,
    /// The model's name.
    pub model: String,
    /// The adapter version, if one served the requests.
    pub adapter_version_id: Option<AdapterVersionId>,
    /// The number of requests.
    pub requests: u64,
    /// The number of prompt tokens.
    pub input_tokens: u64,
    /// The number of completion tokens.
    pub output_tokens: u64,
    /// The cost in millionths of a US dollar.
    pub micro_usd: u64,
}

/// Records usage of completions.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn count_answers(tx: &mut PgConnection, answers: &[Answered]) -> Result<(), StoreError> {
    for answered in answers {
        sqlx::query!(
            "insert into usage (usage_id, project_id, kind, api_key_id, model, adapter_version_id, requests,
                 input_tokens, output_tokens, micro_usd)
             values ($1, $2, 'completions', $3, $4, $5, $6, $7, $8, $9)",
            ids::uuid(),
            answered.project_id.uuid(),
            answered.api_key_id.map(|id| id.uuid()),
            answered.model,
            answered.adapter_version_id.map(|id| id.uuid()),
            answered.requests as i64,
            answered.input_tokens as i64,
            answered.output_tokens as i64,
            answered.micro_usd as i64,
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// The parameters of a usage report.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The kind: `training`, with its refunds, or `completions`; `None`: all, and the replicas of deployments.
    pub kind: Option<&'static str>,
    /// The start, included, in Unix seconds.
    pub from: i64,
    /// The end, excluded, in Unix seconds.
    pub until: i64,
    /// The width of a bucket in seconds; buckets are counted from 1970.
    pub width: i64,
    /// Limits the report to these keys.
    pub api_keys: Option<Vec<uuid::Uuid>>,
    /// Limits the report to these models.
    pub models: Option<Vec<String>>,
    /// Groups by key.
    pub by_key: bool,
    /// Groups by model.
    pub by_model: bool,
    /// Groups by adapter.
    pub by_adapter: bool,
    /// Groups by job.
    pub by_job: bool,
    /// Groups by kind.
    pub by_kind: bool,
}

/// The sums of one bucket; a column that is not grouped by is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct Sums {
    /// The bucket's number: Unix seconds divided by the width.
    pub bucket: i64,
    pub kind: Option<String>,
    pub api_key_id: Option<uuid::Uuid>,
    pub model: Option<String>,
    pub adapter_version_id: Option<uuid::Uuid>,
    pub job_id: Option<uuid::Uuid>,
    /// The number of rows without refunds; for training, of ended runs.
    pub runs: i64,
    pub requests: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub trained_tokens: i64,
    pub node_ms: i64,
    pub micro_usd: i64,
}

/// Returns sums of a project's usage, oldest bucket first. Buckets without usage are omitted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sums(conn: &mut PgConnection, project: ProjectId, asked: &Question) -> Result<Vec<Sums>, StoreError> {
    Ok(sqlx::query_as!(
        Sums,
        r#"select floor(extract(epoch from used_at)::float8 / $5::float8)::bigint as "bucket!",
             case when $12 then kind end as kind, case when $8 then api_key_id end as api_key_id,
             case when $9 then model end as model, case when $10 then adapter_version_id end as adapter_version_id,
             case when $11 then job_id end as job_id, count(*) filter (where kind <> 'refund') as "runs!",
             sum(requests)::bigint as "requests!", sum(input_tokens)::bigint as "input_tokens!",
             sum(output_tokens)::bigint as "output_tokens!", sum(trained_tokens)::bigint as "trained_tokens!",
             sum(node_ms)::bigint as "node_ms!", sum(micro_usd)::bigint as "micro_usd!"
         from usage
         where project_id = $1 and ($2::text is null or kind = $2 or (kind = 'refund' and $2 = 'training'))
             and used_at >= to_timestamp($3::bigint::float8) and used_at < to_timestamp($4::bigint::float8)
             and ($6::uuid[] is null or api_key_id = any($6)) and ($7::text[] is null or model = any($7))
         group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6"#,
        project.uuid(),
        asked.kind,
        asked.from,
        asked.until,
        asked.width as f64,
        asked.api_keys.as_deref(),
        asked.models.as_deref(),
        asked.by_key,
        asked.by_model,
        asked.by_adapter,
        asked.by_job,
        asked.by_kind,
    )
    .fetch_all(conn)
    .await?)
}

/// Returns a project's spending since `since`, in millionths of a US dollar, active runs included.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn spent(conn: &mut PgConnection, project: ProjectId, since: DateTime<Utc>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select ((select coalesce(sum(micro_usd), 0) from usage where project_id = $1 and used_at >= $2)
             + (select coalesce(sum(
                     extract(epoch from clock_timestamp() - greatest(node.created_at, $2))
                         * node.micro_usd_per_hour / 3600
                     + (job.top_tokens - job.charged_tokens)::numeric * job.micro_usd_per_million_tokens / 1000000), 0)
                 from run join job on job.job_id = run.job_id join node using (node_id)
                 where job.project_id = $1 and run.state <> 'ended'))::bigint as "spent!""#,
        project.uuid(),
        since,
    )
    .fetch_one(conn)
    .await?)
}
