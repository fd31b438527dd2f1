//! Organizations and their projects: who is there.

use attune_domain::id::{Organization, OrganizationId, Project as ProjectKind, ProjectId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{db, error::StoreError, mint};

/// Refuses a second project of the same name in an organization.
pub const PROJECT_NAME_KEY: &str = "project_name_key";

/// Refuses a second organization of the same name.
pub const ORGANIZATION_NAME_KEY: &str = "organization_name_key";

/// Refuses a name that is not plain and short.
pub const PROJECT_NAME_CHECK: &str = "project_name_check";

/// A project and who owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The tenant.
    pub project_id: ProjectId,
    /// Stands in the names of tuned models.
    pub name: String,
    /// Its owner.
    pub organization_id: OrganizationId,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// Since when its keys open nothing.
    pub archived_at: Option<DateTime<Utc>>,
}

struct Row {
    project_id: Uuid,
    name: String,
    organization_id: Uuid,
    created_at: DateTime<Utc>,
    archived_at: Option<DateTime<Utc>>,
}

impl From<Row> for Project {
    fn from(row: Row) -> Self {
        Self {
            project_id: ProjectId::new(row.project_id),
            name: row.name,
            organization_id: OrganizationId::new(row.organization_id),
            created_at: row.created_at,
            archived_at: row.archived_at,
        }
    }
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
        mint::id::<Organization>().uuid(),
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
        mint::id::<ProjectKind>().uuid(),
        owner,
        project,
    )
    .execute(&mut *db)
    .await?;
    let row = sqlx::query_as!(
        Row,
        "select project_id, name, organization_id, created_at, archived_at from project
         where organization_id = $1 and name = $2",
        owner,
        project,
    )
    .fetch_one(&mut *db)
    .await?;
    Ok(row.into())
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationRow {
    /// Which.
    pub organization_id: OrganizationId,
    /// Unique in the installation.
    pub name: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// Makes an organization. The transaction becomes one of its administration; before, it must be of somebody who
/// administers the installation ([`db::as_installation`]).
///
/// # Errors
/// [`StoreError::Conflict`] on [`ORGANIZATION_NAME_KEY`].
pub async fn insert_organization(tx: &mut PgConnection, name: &str) -> Result<OrganizationRow, StoreError> {
    let id = mint::id::<Organization>();
    db::as_organization(tx, id).await?;
    let created_at = sqlx::query_scalar!(
        "insert into organization (organization_id, name) values ($1, $2) returning created_at",
        id.uuid(),
        name,
    )
    .fetch_one(tx)
    .await?;
    Ok(OrganizationRow { organization_id: id, name: name.to_owned(), created_at })
}

/// The installation's organizations, newest first, behind `after`. For whoever administers it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn organizations(
    db: &mut PgConnection,
    after: Option<OrganizationId>,
    limit: i64,
) -> Result<Vec<OrganizationRow>, StoreError> {
    let rows = sqlx::query!(
        "select organization_id, name, created_at from organization
         where $1::uuid is null or organization_id < $1 order by organization_id desc limit $2",
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| OrganizationRow {
            organization_id: OrganizationId::new(row.organization_id),
            name: row.name,
            created_at: row.created_at,
        })
        .collect())
}

/// Makes a project.
///
/// # Errors
/// [`StoreError::Conflict`] on [`PROJECT_NAME_KEY`] or [`PROJECT_NAME_CHECK`].
pub async fn insert(db: &mut PgConnection, owner: OrganizationId, name: &str) -> Result<Project, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "insert into project (project_id, organization_id, name) values ($1, $2, $3)
         returning project_id, name, organization_id, created_at, archived_at",
        mint::id::<ProjectKind>().uuid(),
        owner.uuid(),
        name,
    )
    .fetch_one(db)
    .await?;
    Ok(row.into())
}

/// A project of an organization.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(db: &mut PgConnection, owner: OrganizationId, id: ProjectId) -> Result<Project, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "select project_id, name, organization_id, created_at, archived_at from project
         where organization_id = $1 and project_id = $2",
        owner.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.ok_or(StoreError::NotFound("project"))?.into())
}

/// An organization's projects, newest first, behind `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    owner: OrganizationId,
    with_archived: bool,
    after: Option<ProjectId>,
    limit: i64,
) -> Result<Vec<Project>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select project_id, name, organization_id, created_at, archived_at from project
         where organization_id = $1 and ($2 or archived_at is null) and ($3::uuid is null or project_id < $3)
         order by project_id desc limit $4",
        owner.uuid(),
        with_archived,
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Project::from).collect())
}

/// Gives a project another name. Models that were tuned under the old one keep theirs.
///
/// # Errors
/// As [`insert`], and [`StoreError::NotFound`]: there is none, or it is archived.
pub async fn rename(
    db: &mut PgConnection,
    owner: OrganizationId,
    id: ProjectId,
    name: &str,
) -> Result<Project, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "update project set name = $3 where organization_id = $1 and project_id = $2 and archived_at is null
         returning project_id, name, organization_id, created_at, archived_at",
        owner.uuid(),
        id.uuid(),
        name,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.ok_or(StoreError::NotFound("project"))?.into())
}

/// Closes a project: its keys open nothing any more, its rows stay. Once more changes nothing.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn archive(db: &mut PgConnection, owner: OrganizationId, id: ProjectId) -> Result<Project, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "update project set archived_at = coalesce(archived_at, now()) where organization_id = $1 and project_id = $2
         returning project_id, name, organization_id, created_at, archived_at",
        owner.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.ok_or(StoreError::NotFound("project"))?.into())
}
