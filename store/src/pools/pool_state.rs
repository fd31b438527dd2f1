//! The state of all pools that have replicas or deployments, in one statement: the autoscaler reads it every second.

use attune_domain::{
    id::{BaseModelId, DeploymentId, ProjectId},
    offer::ReplicaKind,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::pool_load::FRESH_SECONDS;
use crate::{
    error::{StoreError, named, quantization},
    replica::row::ServedBase,
};

/// The settings of a pool without a deployment, and of the fields that a deployment does not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolDefaults {
    /// The maximum number of replicas.
    pub max_replicas: u32,
    /// The requests per replica.
    pub target_concurrency: u32,
    /// The seconds without a request after which a pool has no replica any more.
    pub cooldown_seconds: u32,
}

/// A pool, its bounds, and its replicas.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolState {
    /// The base that its replicas serve, and their deployment.
    pub base: ServedBase,
    /// The kind of its replicas.
    pub kind: ReplicaKind,
    /// The minimum number of replicas; 0 without a deployment.
    pub min_replicas: u32,
    /// The maximum number of replicas; 0 for a deployment that is suspended or does not exist any more.
    pub max_replicas: u32,
    /// The requests per replica.
    pub target_concurrency: u32,
    /// The seconds without a request after which it has no replica any more.
    pub cooldown_seconds: u32,
    /// The project of its deployment, if it has one.
    pub project: Option<ProjectId>,
    /// The number of replicas that are requested, launched or ready, of the pool's kind.
    pub replicas: u32,
    /// The number of those of another kind: the deployment was changed, and they are replaced.
    pub outdated: u32,
    /// The number of ready replicas of the pool's kind.
    pub ready: u32,
    /// The requests in progress and waiting.
    pub requests: f64,
    /// Seconds since its last request; infinite without replicas.
    pub idle_seconds: f64,
    /// The number of its replicas that failed during the last ten minutes.
    pub failures: u32,
    /// Seconds since the last of these failed; infinite without failures.
    pub failed_seconds: f64,
}

/// The row as SQL returns it.
struct Row {
    base_model_id: Uuid,
    quantization: String,
    deployment_id: Option<Uuid>,
    project_id: Option<Uuid>,
    engine: String,
    device: String,
    kv_cache_dtype: String,
    draft_model_id: Option<Uuid>,
    min_replicas: i32,
    max_replicas: i32,
    target_concurrency: i32,
    cooldown_seconds: i32,
    replicas: i64,
    outdated: i64,
    ready: i64,
    requests: f64,
    idle_seconds: f64,
    failures: i64,
    failed_seconds: f64,
}

impl TryFrom<Row> for PoolState {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Self {
            base: ServedBase {
                base_model_id: BaseModelId::new(row.base_model_id),
                quantization: quantization("replica.quantization", &row.quantization)?,
                deployment_id: row.deployment_id.map(DeploymentId::new),
            },
            kind: ReplicaKind {
                engine: named("deployment.engine", &row.engine, "engine")?,
                device: named("deployment.device", &row.device, "device")?,
                kv_cache_dtype: named("deployment.kv_cache_dtype", &row.kv_cache_dtype, "type of keys and values")?,
                draft: row.draft_model_id.map(BaseModelId::new),
            },
            min_replicas: count(row.min_replicas.into()),
            max_replicas: count(row.max_replicas.into()),
            target_concurrency: count(row.target_concurrency.into()),
            cooldown_seconds: count(row.cooldown_seconds.into()),
            project: row.project_id.map(ProjectId::new),
            replicas: count(row.replicas),
            outdated: count(row.outdated),
            ready: count(row.ready),
            requests: row.requests,
            idle_seconds: row.idle_seconds,
            failures: count(row.failures),
            failed_seconds: row.failed_seconds,
        })
    }
}

/// Returns the state of all pools.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn all(conn: &mut PgConnection, defaults: PoolDefaults) -> Result<Vec<PoolState>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"with deployed as (
             select d.deployment_id, d.base_model_id, d.quantization, d.project_id, d.engine, d.device,
                 d.kv_cache_dtype, d.draft_model_id, d.min_replicas, d.max_replicas, d.target_concurrency,
                 d.cooldown_seconds, is_deployed(d.deployment_id) as has_replicas
             from deployment as d),
         live as (
             select base_model_id, quantization, deployment_id, count(*) filter (where is_current) as replicas,
                 count(*) filter (where not is_current) as outdated,
                 count(*) filter (where is_current and state = 'ready') as ready,
                 extract(epoch from clock_timestamp() - max(last_used_at))::float8 as idle_seconds
             from (select r.base_model_id, r.quantization, r.deployment_id, r.state, r.last_used_at,
                     -- The replicas of a deployment that was deleted end, whatever they are.
                     case when r.deployment_id is null then (r.engine, r.device) = ('attune', 'auto')
                         else d.deployment_id is null
                             or (r.engine, r.device, r.kv_cache_dtype, r.draft_model_id)
                                 is not distinct from (d.engine, d.device, d.kv_cache_dtype, d.draft_model_id)
                         end as is_current
                 from replica as r left join deployed as d on d.deployment_id = r.deployment_id
                 where r.state in ('wanted', 'launching', 'ready')) as replica
             group by base_model_id, quantization, deployment_id),
         load as (
             select base_model_id, quantization, deployment_id, sum(requests) as requests
             from pool_load where seen_at > now() - make_interval(secs => $4)
             group by base_model_id, quantization, deployment_id),
         failed as (
             select base_model_id, quantization, deployment_id, count(*) as failures,
                 extract(epoch from clock_timestamp() - max(ended_at))::float8 as failed_seconds
             from replica where error is not null and ended_at > now() - interval '10 minutes'
             group by base_model_id, quantization, deployment_id),
         pool as (
             select base_model_id, quantization, deployment_id from deployed
             union select base_model_id, quantization, deployment_id from live)
         select pool.base_model_id as "base_model_id!", pool.quantization as "quantization!",
             pool.deployment_id as "deployment_id?", d.project_id as "project_id?",
             coalesce(d.engine, 'attune') as "engine!", coalesce(d.device, 'auto') as "device!",
             coalesce(d.kv_cache_dtype, 'auto') as "kv_cache_dtype!", d.draft_model_id as "draft_model_id?",
             case when has_replicas then min_replicas else 0 end as "min_replicas!",
             case when pool.deployment_id is null then $1 when has_replicas then max_replicas else 0 end
                 as "max_replicas!",
             coalesce(target_concurrency, $2) as "target_concurrency!",
             coalesce(cooldown_seconds, $3) as "cooldown_seconds!",
             coalesce(replicas, 0) as "replicas!", coalesce(outdated, 0) as "outdated!", coalesce(ready, 0) as "ready!",
             coalesce(requests, 0)::float8 as "requests!",
             coalesce(idle_seconds, 'infinity')::float8 as "idle_seconds!", coalesce(failures, 0) as "failures!",
             coalesce(failed_seconds, 'infinity')::float8 as "failed_seconds!"
         from pool left join deployed as d on d.deployment_id = pool.deployment_id
             left join live on live.base_model_id = pool.base_model_id and live.quantization = pool.quantization
                 and live.deployment_id is not distinct from pool.deployment_id
             left join load on load.base_model_id = pool.base_model_id and load.quantization = pool.quantization
                 and load.deployment_id is not distinct from pool.deployment_id
             left join failed on failed.base_model_id = pool.base_model_id and failed.quantization = pool.quantization
                 and failed.deployment_id is not distinct from pool.deployment_id
         order by 1, 2, 3"#,
        defaults.max_replicas as i32,
        defaults.target_concurrency as i32,
        defaults.cooldown_seconds as i32,
        FRESH_SECONDS,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(PoolState::try_from).collect()
}
