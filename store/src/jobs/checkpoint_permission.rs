//! Checkpoint permissions: the other projects of an organization that may use a checkpoint as a model.

use attune_domain::id::{CheckpointPermission as Kind, CheckpointPermissionId, OrganizationId, ProjectId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::StoreError, ids};

/// A permission of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// The permission's ID.
    pub checkpoint_permission_id: CheckpointPermissionId,
    /// The project that may use the checkpoint.
    pub granted_project_id: ProjectId,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
}

/// The row as SQL returns it.
struct Row {
    checkpoint_permission_id: uuid::Uuid,
    granted_project_id: uuid::Uuid,
    created_at: DateTime<Utc>,
}

impl From<Row> for Permission {
    fn from(row: Row) -> Self {
        Self {
            checkpoint_permission_id: CheckpointPermissionId::new(row.checkpoint_permission_id),
            granted_project_id: ProjectId::new(row.granted_project_id),
            created_at: row.created_at,
        }
    }
}

/// Returns the first of `projects` that does not belong to the organization. For a transaction that sees all projects.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn first_stranger(
    conn: &mut PgConnection,
    organization: OrganizationId,
    projects: &[ProjectId],
) -> Result<Option<ProjectId>, StoreError> {
    let wanted: Vec<_> = projects.iter().map(|id| id.uuid()).collect();
    let known = sqlx::query_scalar!(
        "select project_id from project where organization_id = $1 and project_id = any($2)",
        organization.uuid(),
        &wanted,
    )
    .fetch_all(conn)
    .await?;
    Ok(projects.iter().find(|project| !known.contains(&project.uuid())).copied())
}

/// Lets projects use a checkpoint of `project`. Idempotent.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn grant(
    tx: &mut PgConnection,
    project: ProjectId,
    model_name: &str,
    to: &[ProjectId],
) -> Result<Vec<Permission>, StoreError> {
    let mut granted = Vec::with_capacity(to.len());
    for other in to {
        let row = sqlx::query_as!(
            Row,
            "insert into checkpoint_permission (checkpoint_permission_id, project_id, model_name, granted_project_id)
             values ($1, $2, $3, $4)
             on conflict (project_id, model_name, granted_project_id) do update set model_name = excluded.model_name
             returning checkpoint_permission_id, granted_project_id, created_at",
            ids::id::<Kind>().uuid(),
            project.uuid(),
            model_name,
            other.uuid(),
        )
        .fetch_one(&mut *tx)
        .await?;
        granted.push(row.into());
    }
    Ok(granted)
}

/// A page of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Limits the list to this project.
    pub granted_to: Option<ProjectId>,
    /// The ID to list after.
    pub after: Option<CheckpointPermissionId>,
    /// The maximum number of permissions.
    pub limit: i64,
    /// True for oldest first.
    pub ascending: bool,
}

/// Returns the permissions of a checkpoint of `project`, newest first unless the page requires otherwise.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    model_name: &str,
    page: &Page,
) -> Result<Vec<Permission>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select checkpoint_permission_id, granted_project_id, created_at from checkpoint_permission
         where project_id = $1 and model_name = $2 and ($3::uuid is null or granted_project_id = $3)
             and ($4::uuid is null
                 or case when $6 then checkpoint_permission_id > $4 else checkpoint_permission_id < $4 end)
         order by case when $6 then checkpoint_permission_id end, checkpoint_permission_id desc limit $5",
        project.uuid(),
        model_name,
        page.granted_to.map(|id| id.uuid()),
        page.after.map(|id| id.uuid()),
        page.limit,
        page.ascending,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Permission::from).collect())
}

/// Revokes a permission.
///
/// # Errors
/// [`StoreError::NotFound`]: the checkpoint has no such permission. [`StoreError::Database`].
pub async fn revoke(
    tx: &mut PgConnection,
    project: ProjectId,
    model_name: &str,
    id: CheckpointPermissionId,
) -> Result<(), StoreError> {
    let gone = sqlx::query!(
        "delete from checkpoint_permission
         where checkpoint_permission_id = $1 and project_id = $2 and model_name = $3",
        id.uuid(),
        project.uuid(),
        model_name,
    )
    .execute(tx)
    .await?;
    if gone.rows_affected() == 0 { Err(StoreError::NotFound("checkpoint permission")) } else { Ok(()) }
}

/// Returns the project that owns the checkpoint, if `project` may use it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn owner(
    conn: &mut PgConnection,
    project: ProjectId,
    model_name: &str,
) -> Result<Option<ProjectId>, StoreError> {
    let owner = sqlx::query_scalar!(
        "select project_id from checkpoint_permission where model_name = $1 and granted_project_id = $2",
        model_name,
        project.uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(owner.map(ProjectId::new))
}
