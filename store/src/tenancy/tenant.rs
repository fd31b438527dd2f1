//! Organizations and their projects.

use attune_domain::id::{Organization, OrganizationId, Project as ProjectKind, ProjectId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{db, error::StoreError, ids};

/// The constraint that refuses a second project of the same name in an organization.
pub const PROJECT_NAME_KEY: &str = "project_name_key";

/// The constraint that refuses a second organization of the same name.
pub const ORGANIZATION_NAME_KEY: &str = "organization_name_key";

/// The constraint that refuses a project name with other characters or that is too long.
pub const PROJECT_NAME_CHECK: &str = "project_name_check";

/// A project and its organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The project's ID.
    pub project_id: ProjectId,
    /// The project's name; part of fine-tuned models' names.
    pub name: String,
    /// The ID of its organization.
    pub organization_id: OrganizationId,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
    /// The time of archiving; its keys give no access any more.
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

/// Returns the project of this name in the organization of that name; creates both if they do not exist.
///
/// Safe to call from many processes at once: a later call finds the rows of an earlier one.
///
/// # Errors
/// [`StoreError::Database`], also when `project` is not a valid name.
pub async fn ensure(db: &mut PgConnection, organization: &str, project: &str) -> Result<Project, StoreError> {
    sqlx::query!(
        "insert into organization (organization_id, name) values ($1, $2) on conflict (name) do nothing",
        ids::id::<Organization>().uuid(),
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
        ids::id::<ProjectKind>().uuid(),
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
    /// The organization's ID.
    pub organization_id: OrganizationId,
    /// The organization's name, unique in the installation.
    pub name: String,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
}

/// Creates an organization. The transaction becomes one of its administration; before, it must have the rights of an
/// administrator of the installation ([`db::as_installation`]).
///
/// # Errors
/// [`StoreError::Conflict`] on [`ORGANIZATION_NAME_KEY`].
pub async fn insert_organization(tx: &mut PgConnection, name: &str) -> Result<OrganizationRow, StoreError> {
    let id = ids::id::<Organization>();
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

/// Returns the installation's organizations, newest first, after `after`. For its administrators.
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

/// Creates a project.
///
/// # Errors
/// [`StoreError::Conflict`] on [`PROJECT_NAME_KEY`] or [`PROJECT_NAME_CHECK`].
pub async fn insert(db: &mut PgConnection, owner: OrganizationId, name: &str) -> Result<Project, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "insert into project (project_id, organization_id, name) values ($1, $2, $3)
         returning project_id, name, organization_id, created_at, archived_at",
        ids::id::<ProjectKind>().uuid(),
        owner.uuid(),
        name,
    )
    .fetch_one(db)
    .await?;
    Ok(row.into())
}

/// Returns a project of an organization.
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

/// Returns an organization's projects, newest first, after `after`.
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

/// Renames a project. Models that were fine-tuned under the old name keep theirs.
///
/// # Errors
/// As [`insert`], and [`StoreError::NotFound`]: it does not exist, or is archived.
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

/// Archives a project: its keys give no access any more, its rows stay. Idempotent.
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
