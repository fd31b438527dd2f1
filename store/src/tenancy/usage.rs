//! What was used and what it cost. Rows are only ever added.

use attune_domain::id::{AdapterVersionId, ApiKeyId, ProjectId, RunId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::StoreError, mint};

/// Charges a run that ends: the time of its node, and the tokens that no run of its job had trained on before. In the
/// transaction of its end.
pub(crate) async fn charge_run(tx: &mut PgConnection, run: RunId) -> Result<(), StoreError> {
    sqlx::query!(
        "with used as (
             select job.job_id, job.project_id, job.api_key_id, base_model.name as model,
                 job.top_tokens - job.charged_tokens as tokens, job.micro_usd_per_million_tokens as token_price,
                 (extract(epoch from clock_timestamp() - node.created_at) * 1000)::bigint as node_ms,
                 node.micro_usd_per_hour as node_price
             from run join job on job.job_id = run.job_id join node using (node_id) join base_model using (base_model_id)
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
        mint::uuid(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Answers of one model for one key, together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Whose.
    pub project_id: ProjectId,
    /// Who asked.
    pub api_key_id: Option<ApiKeyId>,
    /// What answered.
    pub model: String,
    /// Which adapter, if one did.
    pub adapter_version_id: Option<AdapterVersionId>,
    /// How many.
    pub requests: u64,
    /// Tokens of the prompts.
    pub input_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// What they cost.
    pub micro_usd: u64,
}

/// Writes answers down.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn count_answers(tx: &mut PgConnection, answers: &[Answered]) -> Result<(), StoreError> {
    for answered in answers {
        sqlx::query!(
            "insert into usage (usage_id, project_id, kind, api_key_id, model, adapter_version_id, requests, input_tokens,
                 output_tokens, micro_usd)
             values ($1, $2, 'completions', $3, $4, $5, $6, $7, $8, $9)",
            mint::uuid(),
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

/// What a report of usage is to show.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// `training` or `completions`; `None`: both.
    pub kind: Option<&'static str>,
    /// From here on, Unix seconds.
    pub from: i64,
    /// Up to here, not included.
    pub until: i64,
    /// Seconds of a bucket; buckets are counted from 1970.
    pub width: i64,
    /// Only these keys'.
    pub api_keys: Option<Vec<uuid::Uuid>>,
    /// Only these models'.
    pub models: Option<Vec<String>>,
    /// A row for each key.
    pub by_key: bool,
    /// A row for each model.
    pub by_model: bool,
    /// A row for each adapter.
    pub by_adapter: bool,
    /// A row for each job.
    pub by_job: bool,
    /// A row for each kind.
    pub by_kind: bool,
}

/// Sums of one bucket; what the question does not tell apart is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct Sums {
    /// Which bucket: Unix seconds over the width.
    pub bucket: i64,
    pub kind: Option<String>,
    pub api_key_id: Option<uuid::Uuid>,
    pub model: Option<String>,
    pub adapter_version_id: Option<uuid::Uuid>,
    pub job_id: Option<uuid::Uuid>,
    /// Rows: of training, runs that ended.
    pub runs: i64,
    pub requests: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub trained_tokens: i64,
    pub node_ms: i64,
    pub micro_usd: i64,
}

/// Sums of a project's usage, oldest bucket first. Buckets without usage are left out.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sums(conn: &mut PgConnection, project: ProjectId, asked: &Question) -> Result<Vec<Sums>, StoreError> {
    Ok(sqlx::query_as!(
        Sums,
        r#"select floor(extract(epoch from used_at)::float8 / $5::float8)::bigint as "bucket!",
             case when $12 then kind end as kind, case when $8 then api_key_id end as api_key_id,
             case when $9 then model end as model, case when $10 then adapter_version_id end as adapter_version_id,
             case when $11 then job_id end as job_id, count(*) as "runs!",
             sum(requests)::bigint as "requests!", sum(input_tokens)::bigint as "input_tokens!",
             sum(output_tokens)::bigint as "output_tokens!", sum(trained_tokens)::bigint as "trained_tokens!",
             sum(node_ms)::bigint as "node_ms!", sum(micro_usd)::bigint as "micro_usd!"
         from usage
         where project_id = $1 and ($2::text is null or kind = $2)
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

/// What a project has spent since `since`, in millionths of a dollar, runs that are at work included.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn spent(conn: &mut PgConnection, project: ProjectId, since: DateTime<Utc>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select ((select coalesce(sum(micro_usd), 0) from usage where project_id = $1 and used_at >= $2)
             + (select coalesce(sum(
                     extract(epoch from clock_timestamp() - greatest(node.created_at, $2)) * node.micro_usd_per_hour / 3600
                     + (job.top_tokens - job.charged_tokens)::numeric * job.micro_usd_per_million_tokens / 1000000), 0)
                 from run join job on job.job_id = run.job_id join node using (node_id)
                 where job.project_id = $1 and run.state <> 'ended'))::bigint as "spent!""#,
        project.uuid(),
        since,
    )
    .fetch_one(conn)
    .await?)
}
