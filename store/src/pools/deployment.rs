//! Deployments of projects: the replicas that only the requests of one project use, their bounds, and what they cost
//! it.

use attune_domain::{
    id::{AdapterVersionId, BaseModelId, DeploymentId, ProjectId},
    offer::ReplicaKind,
    spec::Quantization,
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    adapters::base_model,
    db,
    error::{StoreError, named, quantization},
    ids,
    pools::{
        deployment_quota::{Exceeded, excess, lock_all},
        deployment_use,
    },
    replica::row::ServedBase,
};

/// The constraint that keeps the deployments of a project apart: one for a base model in a quantization.
pub const POOL_KEY: &str = "deployment_pool_key";

/// The maximum number of pinned adapters of a deployment.
pub const MOST_PINNED: usize = 32;

/// A deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// The deployment's ID.
    pub deployment_id: DeploymentId,
    /// The name of the base model.
    pub model: String,
    /// The pool of its replicas.
    pub base: ServedBase,
    /// The kind of its replicas.
    pub kind: ReplicaKind,
    /// The name of the base that drafts tokens.
    pub draft_model: Option<String>,
    /// The bounds.
    pub bounds: Bounds,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
    /// The time of the last request of the project, to the minute.
    pub last_request_at: Option<DateTime<Utc>>,
    /// `true` if it keeps replicas and had no request for a day.
    pub is_idle: bool,
    /// `true` while it has no replicas, because the project's budget is spent.
    pub is_suspended: bool,
    /// The milliseconds of its replicas' nodes that were charged.
    pub node_ms: i64,
    /// The sum of the charges, in millionths of a US dollar.
    pub micro_usd: i64,
    /// The replicas, by state.
    pub replicas: PoolReplicas,
}

/// The name and the bounds of a deployment; every field is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// The user's label.
    pub name: String,
    /// The replicas that run all the time.
    pub min_replicas: u32,
    /// The maximum number of replicas.
    pub max_replicas: u32,
    /// The requests per replica; `None`: the installation's.
    pub target_concurrency: Option<u32>,
    /// The seconds without a request after which there is no replica any more; `None`: the installation's.
    pub cooldown_seconds: Option<u32>,
    /// The adapter versions that its replicas keep in memory, without those that were deleted.
    pub pinned_adapters: Vec<AdapterVersionId>,
}

/// The number of replicas of a pool, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolReplicas {
    /// Requested or launched.
    pub starting: i64,
    /// Ready.
    pub ready: i64,
    /// Completing their last requests.
    pub draining: i64,
}

struct Row {
    deployment_id: Uuid,
    base_model_id: Uuid,
    model: String,
    quantization: String,
    engine: String,
    device: String,
    kv_cache_dtype: String,
    draft_model_id: Option<Uuid>,
    draft_model: Option<String>,
    name: String,
    min_replicas: i32,
    max_replicas: i32,
    target_concurrency: Option<i32>,
    cooldown_seconds: Option<i32>,
    pinned_adapters: Vec<Uuid>,
    created_at: DateTime<Utc>,
    last_request_at: Option<DateTime<Utc>>,
    is_idle: bool,
    is_suspended: bool,
    node_ms: i64,
    micro_usd: i64,
}

impl TryFrom<Row> for Deployment {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            deployment_id: DeploymentId::new(row.deployment_id),
            model: row.model,
            base: ServedBase {
                base_model_id: BaseModelId::new(row.base_model_id),
                quantization: quantization("deployment.quantization", &row.quantization)?,
                deployment_id: Some(DeploymentId::new(row.deployment_id)),
            },
            kind: ReplicaKind {
                engine: named("deployment.engine", &row.engine, "engine")?,
                device: named("deployment.device", &row.device, "device")?,
                kv_cache_dtype: named("deployment.kv_cache_dtype", &row.kv_cache_dtype, "type of keys and values")?,
                draft: row.draft_model_id.map(BaseModelId::new),
            },
            draft_model: row.draft_model,
            bounds: Bounds {
                name: row.name,
                min_replicas: row.min_replicas.unsigned_abs(),
                max_replicas: row.max_replicas.unsigned_abs(),
                target_concurrency: row.target_concurrency.map(i32::unsigned_abs),
                cooldown_seconds: row.cooldown_seconds.map(i32::unsigned_abs),
                pinned_adapters: row.pinned_adapters.into_iter().map(AdapterVersionId::new).collect(),
            },
            created_at: row.created_at,
            last_request_at: row.last_request_at,
            is_idle: row.is_idle,
            is_suspended: row.is_suspended,
            node_ms: row.node_ms,
            micro_usd: row.micro_usd,
            replicas: PoolReplicas::default(),
        })
    }
}

/// Inserts a deployment, or returns the reason why it does not.
///
/// # Errors
/// [`StoreError::Conflict`] on [`POOL_KEY`]: the project has a deployment of this pool. [`StoreError::NotFound`]: the
/// base model was deleted. [`StoreError::Database`].
pub async fn insert(
    tx: &mut PgConnection,
    project: ProjectId,
    base: ServedBase,
    kind: ReplicaKind,
    bounds: &Bounds,
) -> Result<Result<Deployment, Exceeded>, StoreError> {
    let id: DeploymentId = ids::id();
    lock_all(tx, project).await?;
    if let Some(exceeded) = excess(tx, project, None, bounds.max_replicas).await? {
        return Ok(Err(exceeded));
    }
    let pinned = pinned(bounds);
    sqlx::query!(
        "insert into deployment (deployment_id, project_id, base_model_id, quantization, engine, name, min_replicas,
             max_replicas, target_concurrency, cooldown_seconds, pinned_adapters, device, kv_cache_dtype,
             draft_model_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        id.uuid(),
        project.uuid(),
        base.base_model_id.uuid(),
        base.quantization.name(),
        kind.engine.name(),
        bounds.name,
        bounds.min_replicas as i32,
        bounds.max_replicas as i32,
        bounds.target_concurrency.map(|target| target as i32),
        bounds.cooldown_seconds.map(|seconds| seconds as i32),
        &pinned,
        kind.device.name(),
        kind.kv_cache_dtype.name(),
        kind.draft.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    models_still_there(tx, [Some(base.base_model_id), kind.draft]).await?;
    deployment_use::insert(tx, project, id).await?;
    get(tx, project, id).await.map(Ok)
}

/// Returns the pool whose replicas answer a project's requests to a base model in a quantization: that of the project's
/// deployment, or else the shared one. `tx` is a transaction of any project.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn pool_of(
    tx: &mut PgConnection,
    project: ProjectId,
    base: BaseModelId,
    quantization: Quantization,
) -> Result<ServedBase, StoreError> {
    db::as_platform(tx).await?;
    let found =
        sqlx::query_scalar!("select deployment_of($1, $2, $3)", project.uuid(), base.uuid(), quantization.name(),)
            .fetch_one(&mut *tx)
            .await?;
    db::as_application(tx).await?;
    let deployment_id = found.map(DeploymentId::new);
    Ok(ServedBase { deployment_id, ..ServedBase::shared(base, quantization) })
}

/// Checks, after a row that names these base models was written, that they were not deleted meanwhile.
async fn models_still_there(tx: &mut PgConnection, models: [Option<BaseModelId>; 2]) -> Result<(), StoreError> {
    for id in models.into_iter().flatten() {
        base_model::still_there(tx, id).await?;
    }
    Ok(())
}

fn pinned(bounds: &Bounds) -> Vec<Uuid> {
    bounds.pinned_adapters.iter().map(|id| id.uuid()).collect()
}

/// Returns a project's deployment.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(tx: &mut PgConnection, project: ProjectId, id: DeploymentId) -> Result<Deployment, StoreError> {
    select(tx, project, Some(id), None, 1).await?.pop().ok_or(StoreError::NotFound("deployment"))
}

/// Returns a project's deployments, newest first, after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    tx: &mut PgConnection,
    project: ProjectId,
    after: Option<DeploymentId>,
    limit: i64,
) -> Result<Vec<Deployment>, StoreError> {
    select(tx, project, None, after, limit).await
}

async fn select(
    tx: &mut PgConnection,
    project: ProjectId,
    id: Option<DeploymentId>,
    after: Option<DeploymentId>,
    limit: i64,
) -> Result<Vec<Deployment>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select d.deployment_id, d.base_model_id, b.name as model, d.quantization, d.engine, d.device,
             d.kv_cache_dtype, d.draft_model_id, draft.name as "draft_model?", d.name, d.min_replicas, d.max_replicas,
             d.target_concurrency, d.cooldown_seconds,
             array(select v.adapter_version_id from adapter_version as v
                 where v.adapter_version_id = any(d.pinned_adapters) and v.deleted_at is null
                 order by v.adapter_version_id) as "pinned_adapters!",
             d.created_at, u.last_request_at,
             (d.min_replicas > 0 and coalesce(u.last_request_at, d.created_at) < now() - interval '1 day')
                 as "is_idle!",
             u.is_suspended, u.node_ms, u.micro_usd
         from deployment as d
             join deployment_use as u on u.deployment_id = d.deployment_id
             join base_model as b on b.base_model_id = d.base_model_id
             left join base_model as draft on draft.base_model_id = d.draft_model_id
         where d.project_id = $1 and ($2::uuid is null or d.deployment_id = $2)
             and ($3::uuid is null or d.deployment_id < $3)
         order by d.deployment_id desc limit $4"#,
        project.uuid(),
        id.map(|id| id.uuid()),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut deployments = rows.into_iter().map(Deployment::try_from).collect::<Result<Vec<_>, _>>()?;
    count_replicas(tx, &mut deployments).await?;
    Ok(deployments)
}

/// Fills in the numbers of replicas, whose rows belong to the platform.
async fn count_replicas(tx: &mut PgConnection, deployments: &mut [Deployment]) -> Result<(), StoreError> {
    if deployments.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = deployments.iter().map(|deployment| deployment.deployment_id.uuid()).collect();
    db::as_platform(tx).await?;
    let counts = sqlx::query!(
        r#"select deployment_id as "deployment_id!",
             count(*) filter (where state in ('wanted', 'launching')) as "starting!",
             count(*) filter (where state = 'ready') as "ready!",
             count(*) filter (where state = 'draining') as "draining!"
         from replica where deployment_id = any($1) and state <> 'ended' group by deployment_id"#,
        &ids,
    )
    .fetch_all(&mut *tx)
    .await?;
    db::as_application(tx).await?;
    for deployment in deployments {
        let count = counts.iter().find(|row| row.deployment_id == deployment.deployment_id.uuid());
        if let Some(row) = count {
            deployment.replicas = PoolReplicas { starting: row.starting, ready: row.ready, draining: row.draining };
        }
    }
    Ok(())
}

/// Replaces the kind, the name and the bounds of a deployment, or returns the reason why it does not.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn update(
    tx: &mut PgConnection,
    project: ProjectId,
    id: DeploymentId,
    kind: ReplicaKind,
    bounds: &Bounds,
) -> Result<Result<Deployment, Exceeded>, StoreError> {
    lock_all(tx, project).await?;
    if let Some(exceeded) = excess(tx, project, Some(id), bounds.max_replicas).await? {
        return Ok(Err(exceeded));
    }
    let pinned = pinned(bounds);
    sqlx::query!(
        "update deployment set name = $3, min_replicas = $4, max_replicas = $5, target_concurrency = $6,
             cooldown_seconds = $7, pinned_adapters = $8, engine = $9, device = $10, kv_cache_dtype = $11,
             draft_model_id = $12
         where project_id = $1 and deployment_id = $2",
        project.uuid(),
        id.uuid(),
        bounds.name,
        bounds.min_replicas as i32,
        bounds.max_replicas as i32,
        bounds.target_concurrency.map(|target| target as i32),
        bounds.cooldown_seconds.map(|seconds| seconds as i32),
        &pinned,
        kind.engine.name(),
        kind.device.name(),
        kind.kv_cache_dtype.name(),
        kind.draft.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    models_still_there(tx, [kind.draft, None]).await?;
    get(tx, project, id).await.map(Ok)
}

/// Locks a deployment until the transaction ends, and returns it: a change of some fields keeps the others.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn lock(tx: &mut PgConnection, project: ProjectId, id: DeploymentId) -> Result<Deployment, StoreError> {
    sqlx::query!(
        "select deployment_id from deployment where project_id = $1 and deployment_id = $2 for update",
        project.uuid(),
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    get(tx, project, id).await
}

/// Deletes a deployment, after a last charge. Its charges remain; its replicas complete their requests.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn delete(tx: &mut PgConnection, project: ProjectId, id: DeploymentId) -> Result<(), StoreError> {
    get(tx, project, id).await?;
    db::as_platform(tx).await?;
    deployment_use::charge(tx, Some(id)).await?;
    db::as_application(tx).await?;
    let deleted =
        sqlx::query!("delete from deployment where project_id = $1 and deployment_id = $2", project.uuid(), id.uuid(),)
            .execute(tx)
            .await?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("deployment")) }
}
