//! Users, and their roles in an organization and in its projects.
//!
//! A user is an identity at an issuer (OpenID Connect). The ID is computed from issuer and subject, so that a request
//! that adds a user can name the row without reading it: another organization may have written the row, and must not be
//! visible.

use attune_domain::{
    access::Role,
    id::{OrganizationId, PersonId, ProjectId},
};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::{Builder, Uuid};

use crate::error::StoreError;

/// A member of an organization or a project.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct Member {
    pub person_id: PersonId,
    pub issuer: String,
    pub subject: String,
    pub email: Option<String>,
    pub name: Option<String>,
    pub role: Role,
    pub created_at: DateTime<Utc>,
}

/// An identity at an issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The issuer.
    pub issuer: &'a str,
    /// The issuer's subject.
    pub subject: &'a str,
    /// The email address that the issuer reports now.
    pub email: Option<&'a str>,
    /// The name that the issuer reports now.
    pub name: Option<&'a str>,
}

/// A project that a user has access to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The project's ID.
    pub project_id: ProjectId,
    /// The project's name.
    pub project: String,
    /// The ID of its organization.
    pub organization_id: OrganizationId,
    /// The user's effective role in it, including the organization's.
    pub role: Role,
}

/// An organization that a user is a member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belonging {
    /// The organization's ID.
    pub organization_id: OrganizationId,
    /// The organization's name.
    pub organization: String,
    /// The user's role in it.
    pub role: Role,
}

/// Computes the ID of the user whom `issuer` calls `subject`.
#[must_use]
pub fn person_id(issuer: &str, subject: &str) -> PersonId {
    let mut digest = Sha256::new();
    // The length distinguishes two pairs with the same concatenation.
    digest.update((issuer.len() as u64).to_be_bytes());
    digest.update(issuer.as_bytes());
    digest.update(subject.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.finalize()[..16]);
    PersonId::new(Builder::from_custom_bytes(bytes).into_uuid())
}

/// Records a user's visit, and returns their organizations and projects; both lists are empty for an unknown user, who
/// is not recorded.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn arrive(
    db: &mut PgConnection,
    who: &Identity<'_>,
) -> Result<(PersonId, Vec<Belonging>, Vec<Reach>), StoreError> {
    let id = person_id(who.issuer, who.subject);
    sqlx::query!(
        "update person set last_seen_at = now(), email = coalesce($4, email), name = coalesce($5, name)
         where person_id = $1 and issuer = $2 and subject = $3
             and (last_seen_at is null or last_seen_at < now() - interval '1 minute')",
        id.uuid(),
        who.issuer,
        who.subject,
        who.email,
        who.name,
    )
    .execute(&mut *db)
    .await?;
    let belongings = sqlx::query!(
        "select organization_id, o.name, role from organization_member m join organization o using (organization_id)
         join person using (person_id) where person_id = $1 and issuer = $2 and subject = $3 order by organization_id",
        id.uuid(),
        who.issuer,
        who.subject,
    )
    .fetch_all(&mut *db)
    .await?;
    let reaches = sqlx::query!(
        r#"select p.project_id, p.name, p.organization_id, m.role as "organization_role",
             (select role from project_member where project_id = p.project_id and person_id = $1) as project_role
         from organization_member m join project p using (organization_id) join person using (person_id)
         where person_id = $1 and issuer = $2 and subject = $3 and p.archived_at is null order by p.project_id"#,
        id.uuid(),
        who.issuer,
        who.subject,
    )
    .fetch_all(&mut *db)
    .await?;
    let belongings = belongings.into_iter().map(|row| {
        let organization_id = OrganizationId::new(row.organization_id);
        Ok(Belonging { organization_id, organization: row.name, role: read_role(&row.role)? })
    });
    let reaches = reaches.into_iter().filter_map(|row| {
        let role = match reaching_role(&row.organization_role, row.project_role.as_deref()) {
            Ok(role) => role?,
            Err(error) => return Some(Err(error)),
        };
        let (project_id, organization_id) = (ProjectId::new(row.project_id), OrganizationId::new(row.organization_id));
        Some(Ok(Reach { project_id, project: row.name, organization_id, role }))
    });
    Ok((id, belongings.collect::<Result<_, StoreError>>()?, reaches.collect::<Result<_, StoreError>>()?))
}

/// Returns the effective role. An organization's admins and owners have that role in each project; other users have
/// their role in the project, if any.
fn reaching_role(in_organization: &str, in_project: Option<&str>) -> Result<Option<Role>, StoreError> {
    let over_all = Some(read_role(in_organization)?).filter(|role| *role >= Role::Admin);
    Ok(over_all.max(in_project.map(read_role).transpose()?))
}

fn read_role(name: &str) -> Result<Role, StoreError> {
    name.parse().map_err(|e| StoreError::Corrupt { column: "role", cause: Box::new(e) })
}

/// Adds a user to an organization; an existing member keeps their role and is a conflict.
///
/// # Errors
/// [`StoreError::Conflict`] on `organization_member_pkey`. [`StoreError::Database`].
pub async fn admit(
    db: &mut PgConnection,
    organization: OrganizationId,
    who: &Identity<'_>,
    role: Role,
) -> Result<PersonId, StoreError> {
    let id = person_id(who.issuer, who.subject);
    sqlx::query!(
        "insert into person (person_id, issuer, subject, email, name) values ($1, $2, $3, $4, $5)
         on conflict do nothing",
        id.uuid(),
        who.issuer,
        who.subject,
        who.email,
        who.name,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "insert into organization_member (organization_id, person_id, role) values ($1, $2, $3)",
        organization.uuid(),
        id.uuid(),
        role.name(),
    )
    .execute(&mut *db)
    .await?;
    Ok(id)
}

/// Adds a member of the organization to one of its projects.
///
/// # Errors
/// [`StoreError::NotFound`]: they are not in the organization. [`StoreError::Conflict`] on `project_member_pkey`: they
/// are in the project already. [`StoreError::Database`].
pub async fn admit_to_project(
    db: &mut PgConnection,
    project: ProjectId,
    person: PersonId,
    role: Role,
) -> Result<(), StoreError> {
    let admitted = sqlx::query!(
        "insert into project_member (project_id, person_id, role)
         select p.project_id, m.person_id, $3 from project p join organization_member m using (organization_id)
         where p.project_id = $1 and m.person_id = $2",
        project.uuid(),
        person.uuid(),
        role.name(),
    )
    .execute(db)
    .await?;
    if admitted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("user")) }
}

/// The organization or project whose members are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// An organization.
    Organization(OrganizationId),
    /// A project.
    Project(ProjectId),
}

impl Of {
    fn parts(self) -> (Option<Uuid>, Option<Uuid>) {
        match self {
            Self::Organization(id) => (Some(id.uuid()), None),
            Self::Project(id) => (None, Some(id.uuid())),
        }
    }
}

/// Returns members by their IDs, after `after`; or the one whose ID is `only`.
///
/// # Errors
/// [`StoreError::Database`].
async fn select(
    db: &mut PgConnection,
    of: Of,
    only: Option<PersonId>,
    after: Option<PersonId>,
    limit: i64,
) -> Result<Vec<Member>, StoreError> {
    let (organization, project) = of.parts();
    let rows = sqlx::query!(
        r#"select person_id as "person_id!", issuer, subject, email, name, role as "role!",
             m.created_at as "created_at!"
         from (
             select person_id, role, created_at from organization_member where organization_id = $1
             union all select person_id, role, created_at from project_member where project_id = $2) m
         join person using (person_id)
         where ($3::uuid is null or person_id = $3) and ($4::uuid is null or person_id > $4)
         order by person_id limit $5"#,
        organization,
        project,
        only.map(|id| id.uuid()),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    let members = rows.into_iter().map(|row| {
        Ok(Member {
            person_id: PersonId::new(row.person_id),
            issuer: row.issuer,
            subject: row.subject,
            email: row.email,
            name: row.name,
            role: read_role(&row.role)?,
            created_at: row.created_at,
        })
    });
    members.collect()
}

/// Returns members in the order of their IDs, after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    of: Of,
    after: Option<PersonId>,
    limit: i64,
) -> Result<Vec<Member>, StoreError> {
    select(db, of, None, after, limit).await
}

/// Returns one member.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(db: &mut PgConnection, of: Of, person: PersonId) -> Result<Member, StoreError> {
    select(db, of, Some(person), None, 1).await?.pop().ok_or(StoreError::NotFound("user"))
}

/// Changes a member's role.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn change_role(db: &mut PgConnection, of: Of, person: PersonId, role: Role) -> Result<(), StoreError> {
    let (organization, project) = of.parts();
    let changed = sqlx::query_scalar!(
        r#"with organizations as (
             update organization_member set role = $4 where organization_id = $1 and person_id = $3 returning 1),
         projects as (update project_member set role = $4 where project_id = $2 and person_id = $3 returning 1)
         select (select count(*) from organizations) + (select count(*) from projects) as "changed!""#,
        organization,
        project,
        person.uuid(),
        role.name(),
    )
    .fetch_one(db)
    .await?;
    if changed == 1 { Ok(()) } else { Err(StoreError::NotFound("user")) }
}

/// Removes a member; from an organization: from each of its projects too.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn dismiss(db: &mut PgConnection, of: Of, person: PersonId) -> Result<(), StoreError> {
    let (organization, project) = of.parts();
    sqlx::query!(
        "delete from project_member where person_id = $2
             and project_id in (select project_id from project where organization_id = $1)",
        organization,
        person.uuid(),
    )
    .execute(&mut *db)
    .await?;
    let gone = sqlx::query_scalar!(
        r#"with organizations as (
             delete from organization_member where organization_id = $1 and person_id = $3 returning 1),
         projects as (delete from project_member where project_id = $2 and person_id = $3 returning 1)
         select (select count(*) from organizations) + (select count(*) from projects) as "gone!""#,
        organization,
        project,
        person.uuid(),
    )
    .fetch_one(db)
    .await?;
    if gone == 1 { Ok(()) } else { Err(StoreError::NotFound("user")) }
}

/// Returns the owners of an organization, and locks their rows until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock_owners(db: &mut PgConnection, organization: OrganizationId) -> Result<Vec<PersonId>, StoreError> {
    let owners = sqlx::query_scalar!(
        "select person_id from organization_member where organization_id = $1 and role = 'owner'
         order by person_id for update",
        organization.uuid(),
    )
    .fetch_all(db)
    .await?;
    Ok(owners.into_iter().map(PersonId::new).collect())
}
