//! The limits of a project's deployments together.

use attune_domain::id::{DeploymentId, ProjectId};
use sqlx::PgConnection;

use crate::error::StoreError;

/// The maximum number of deployments of a project.
pub const MOST_PER_PROJECT: i64 = 50;

/// The maximum number of replicas of a project's deployments together, where the project's quota is not set.
pub const MOST_REPLICAS_OF_PROJECT: u32 = 32;

/// The limit of a project that a deployment would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// The project has [`MOST_PER_PROJECT`] already.
    Deployments,
    /// The deployments of the project would have more replicas together.
    Replicas {
        /// The maximum.
        most: u32,
    },
}

/// Waits for other transactions that change the number of the project's deployments or replicas.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn lock_all(tx: &mut PgConnection, project: ProjectId) -> Result<(), StoreError> {
    let all = format!("deployments of {project}");
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended($1, 0))", all).execute(tx).await?;
    Ok(())
}

/// Returns the limit of a project that a deployment with `max_replicas` exceeds, if any. `id` is the deployment's, if
/// it exists; a lower number than it has is always possible.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn excess(
    tx: &mut PgConnection,
    project: ProjectId,
    id: Option<DeploymentId>,
    max_replicas: u32,
) -> Result<Option<Exceeded>, StoreError> {
    if id.is_none() {
        let count =
            sqlx::query_scalar!(r#"select count(*) as "count!" from deployment where project_id = $1"#, project.uuid());
        if count.fetch_one(&mut *tx).await? >= MOST_PER_PROJECT {
            return Ok(Some(Exceeded::Deployments));
        }
    }
    let most = sqlx::query_scalar!(
        r#"select coalesce((select max_replicas from project_queue where project_id = $1), $4) as "most!"
           where $3::bigint > coalesce((select max_replicas from deployment where deployment_id = $2), 0)
               and $3::bigint + coalesce((select sum(max_replicas) from deployment
                       where project_id = $1 and deployment_id is distinct from $2), 0)
                   > coalesce((select max_replicas from project_queue where project_id = $1), $4)"#,
        project.uuid(),
        id.map(|id| id.uuid()),
        i64::from(max_replicas),
        MOST_REPLICAS_OF_PROJECT as i32,
    )
    .fetch_optional(tx)
    .await?;
    Ok(most.map(|most| Exceeded::Replicas { most: most.unsigned_abs() }))
}
