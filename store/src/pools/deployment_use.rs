//! The platform's records of deployments: their requests, the charges of their replicas, and idle ones.

use attune_domain::{
    event::EventType,
    id::{DeploymentId, ProjectId},
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{db, error::StoreError, tenancy::money, webhooks::outbox};

/// The most seconds that one charge covers. A scheduler that was stopped for longer charges nothing for the rest.
const MOST_CHARGED_SECONDS: f64 = 300.0;

/// Records a request of a deployment's project, at most once a minute.
pub(crate) async fn requested(tx: &mut PgConnection, id: DeploymentId) -> Result<(), StoreError> {
    sqlx::query!(
        "update deployment_use set last_request_at = now(), idle_notified_at = null
         where deployment_id = $1 and (last_request_at is null or last_request_at < now() - interval '1 minute')",
        id.uuid(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Charges all deployments, or one, for the time of their replicas' nodes since the last charge, each at its price:
/// from its reservation to its release, as a run is charged. Locks their records until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn charge(tx: &mut PgConnection, id: Option<DeploymentId>) -> Result<(), StoreError> {
    // A statement of its own: the next one sees what another charge, of the scheduler or of a deletion, has written.
    sqlx::query!(
        "select from deployment_use where $1::uuid is null or deployment_id = $1 order by deployment_id for update",
        id.map(|id| id.uuid()),
    )
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query!(
        "with spent as (
             select u.deployment_id, node.micro_usd_per_hour as price,
                 extract(epoch from least(coalesce(node.released_at, now()), now())
                     - greatest(node.created_at, u.charged_at, now() - make_interval(secs => $1)))::float8 as seconds
             from deployment_use as u join replica as r on r.deployment_id = u.deployment_id
                 join node on node.node_id = r.node_id
             where (r.state <> 'ended' or r.ended_at >= u.charged_at)
                 and ($2::uuid is null or u.deployment_id = $2)),
         due as (
             select d.deployment_id, d.project_id, b.name as model, sum(seconds * 1000)::bigint as ms,
                 round(sum(seconds * price / 3600))::bigint as micro_usd
             from spent join deployment as d on d.deployment_id = spent.deployment_id
                 join base_model as b on b.base_model_id = d.base_model_id
             where seconds > 0 group by d.deployment_id, d.project_id, b.name),
         charged as (
             update deployment_use as u set node_ms = u.node_ms + due.ms, micro_usd = u.micro_usd + due.micro_usd
             from due where due.deployment_id = u.deployment_id)
         insert into usage (usage_id, project_id, kind, model, node_ms, micro_usd)
         select gen_random_uuid(), project_id, 'deployment', model, ms, micro_usd from due",
        MOST_CHARGED_SECONDS,
        id.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "update deployment_use set charged_at = greatest(charged_at, now())
         where $1::uuid is null or deployment_id = $1",
        id.map(|id| id.uuid()),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns whether a project has a budget, and has spent it.
async fn is_spent(tx: &mut PgConnection, project: ProjectId) -> Result<bool, StoreError> {
    let budget = money::budget(tx, project).await?;
    Ok(budget.monthly_micro_usd.is_some_and(|monthly| budget.spent_micro_usd >= monthly))
}

/// Inserts the record of a new deployment. It is suspended from the beginning if its project's budget is spent. `tx` is
/// a transaction of the project.
pub(super) async fn insert(tx: &mut PgConnection, project: ProjectId, id: DeploymentId) -> Result<(), StoreError> {
    db::as_platform(tx).await?;
    let is_suspended = is_spent(tx, project).await?;
    sqlx::query!("insert into deployment_use (deployment_id, is_suspended) values ($1, $2)", id.uuid(), is_suspended,)
        .execute(&mut *tx)
        .await?;
    db::as_application(tx).await
}

/// Suspends the deployments of projects whose budget is spent, and resumes those of all others. A suspended deployment
/// has no replicas; requests of its project use the shared ones.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn suspend_unaffordable(tx: &mut PgConnection) -> Result<(), StoreError> {
    let projects = sqlx::query_scalar!(
        r#"select distinct project_id as "project_id!" from deployment join budget using (project_id) order by 1"#
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut spent = Vec::new();
    for project in projects {
        if is_spent(tx, ProjectId::new(project)).await? {
            spent.push(project);
        }
    }
    sqlx::query!(
        "update deployment_use as u set is_suspended = d.project_id = any($1)
         from deployment as d
         where d.deployment_id = u.deployment_id and is_suspended <> (d.project_id = any($1))",
        &spent,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Notifies the projects of deployments that keep replicas and had no request for a day, once until the next request.
/// Returns the number of events.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn notify_idle(tx: &mut PgConnection) -> Result<usize, StoreError> {
    let idle = sqlx::query!(
        "update deployment_use as u set idle_notified_at = now()
         from deployment as d join base_model as b on b.base_model_id = d.base_model_id
         where d.deployment_id = u.deployment_id and d.min_replicas > 0 and u.idle_notified_at is null
             and coalesce(u.last_request_at, d.created_at) < now() - interval '1 day'
         returning d.deployment_id, d.project_id, b.name as model, d.quantization",
    )
    .fetch_all(&mut *tx)
    .await?;
    for row in &idle {
        let id = DeploymentId::new(row.deployment_id);
        let data = json!({ "id": id, "model": row.model, "quantization": row.quantization });
        outbox::push(tx, ProjectId::new(row.project_id), EventType::DeploymentIdle, &data).await?;
    }
    Ok(idle.len())
}
