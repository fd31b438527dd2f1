//! Organizations and projects: who is there.
//!
//! Made by the start of the api alone; there is no way yet for a user to add one.

use attune_domain::id::{OrganizationId, ProjectId};
use sqlx::PgConnection;

use crate::{error::StoreError, mint};

/// A project and who owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The tenant.
    pub project_id: ProjectId,
    /// Stands in the names of tuned models.
    pub name: String,
    /// Its owner.
    pub organization_id: OrganizationId,
}

/// The project of this name in the organization of that name; both are made if they are not there.
///
/// Safe to call from many processes at once: whoever comes second finds the rows of the first.
///
/// # Errors
/// [`StoreError::Database`], also when `project` is not a plain short name.
pub async fn ensure(db: &mut PgConnection, organization: &str, project: &str) -> Result<Project, StoreError> {
    sqlx::query!(
        "insert into organization (organization_id, name) values ($1, $2) on conflict (name) do nothing",
        mint::id::<attune_domain::id::Organization>().uuid(),
        organization,
    )
    .execute(&mut *db)
    .await?;
    let owner = sqlx::query_scalar!("select organization_id from organization where name = $1", organization)
        .fetch_one(&mut *db)
        .await?;
    sqlx::query!(
        "insert into project (project_id, organization_id, name) values ($1, $2, $3)
         on conflict (organization_id, name) do nothing",
        mint::id::<attune_domain::id::Project>().uuid(),
        owner,
        project,
    )
    .execute(&mut *db)
    .await?;
    let row =
        sqlx::query!("select project_id, name from project where organization_id = $1 and name = $2", owner, project)
            .fetch_one(&mut *db)
            .await?;
    Ok(Project {
        project_id: ProjectId::new(row.project_id),
        name: row.name,
        organization_id: OrganizationId::new(owner),
    })
}
