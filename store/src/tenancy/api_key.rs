//! API keys: secrets that give a program access to one project, within their scopes.
//!
//! A secret is never stored, only its SHA-256. It has 256 random bits, so no slow hash is needed.

use std::time::Duration;

use attune_domain::{
    access::{Actor, Scope},
    id::{ApiKey as ApiKeyKind, ApiKeyId, OrganizationId, ProjectId},
    text::key_text,
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::StoreError, ids};

/// The caller, and the project of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The key or the user.
    pub actor: Actor,
    /// The key's ID; `None`: the caller is a user.
    pub api_key_id: Option<ApiKeyId>,
    /// The project of the request.
    pub project_id: ProjectId,
    /// The project's name: part of fine-tuned models' names.
    pub project: String,
    /// The ID of the project's organization.
    pub organization_id: OrganizationId,
    /// The organization's name.
    pub organization: String,
    /// True if the caller administers the installation.
    pub administers_installation: bool,
}

/// The access that a valid key gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyGrant {
    /// The caller.
    pub holder: Holder,
    /// The scopes.
    pub scopes: Vec<Scope>,
    /// The time after which it expires; `None`: it does not.
    pub expires_in: Option<Duration>,
}

/// A key as its owner may see it: without the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct ApiKey {
    pub api_key_id: ApiKeyId,
    pub project_id: ProjectId,
    pub name: String,
    pub hint: String,
    pub scopes: Vec<Scope>,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
}

/// A new key.
#[derive(Debug, Clone)]
pub struct NewKey<'a> {
    /// The project that it gives access to.
    pub project_id: ProjectId,
    /// The human-readable name.
    pub name: &'a str,
    /// The scopes.
    pub scopes: &'a [Scope],
    /// The seconds after which it expires; `None`: it does not.
    pub expires_in_seconds: Option<u32>,
}

/// Stores the hash of a key that was generated elsewhere, with every scope, including the installation's
/// administration. An existing one keeps its project and name, and stays revoked if it was.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn ensure(db: &mut PgConnection, project: ProjectId, name: &str, secret: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into api_key (api_key_id, project_id, name, secret_hash, hint, scopes)
         values ($1, $2, $3, $4, $5, '{all,admin,installation}')
         on conflict (secret_hash) do update set scopes = excluded.scopes",
        ids::id::<ApiKeyKind>().uuid(),
        project.uuid(),
        name,
        ids::hash(secret),
        key_text::redact(secret),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Creates a key, and returns its secret, which is not shown again.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert(db: &mut PgConnection, new: &NewKey<'_>) -> Result<(ApiKey, String), StoreError> {
    let secret = ids::api_key();
    let scopes: Vec<String> = new.scopes.iter().map(ToString::to_string).collect();
    let row = sqlx::query_as!(
        Row,
        "insert into api_key (api_key_id, project_id, name, secret_hash, hint, scopes, expires_at)
         values ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))
         returning api_key_id, project_id, name, hint, scopes, created_at, last_used_at, expires_at",
        ids::id::<ApiKeyKind>().uuid(),
        new.project_id.uuid(),
        new.name,
        ids::hash(&secret),
        key_text::redact(&secret),
        &scopes[..],
        new.expires_in_seconds.map(f64::from),
    )
    .fetch_one(db)
    .await?;
    Ok((row.try_into()?, secret))
}

/// Returns a project's keys that are not revoked, newest first, after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    after: Option<ApiKeyId>,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select api_key_id, project_id, name, hint, scopes, created_at, last_used_at, expires_at from api_key
         where project_id = $1 and revoked_at is null and ($2::uuid is null or api_key_id < $2)
         order by api_key_id desc limit $3",
        project.uuid(),
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(ApiKey::try_from).collect()
}

/// Returns a key of a project.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was revoked. [`StoreError::Database`].
pub async fn get(db: &mut PgConnection, project: ProjectId, id: ApiKeyId) -> Result<ApiKey, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "select api_key_id, project_id, name, hint, scopes, created_at, last_used_at, expires_at from api_key
         where project_id = $1 and api_key_id = $2 and revoked_at is null",
        project.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.ok_or(StoreError::NotFound("API key"))?.try_into()
}

/// Revokes a key permanently.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was revoked before. [`StoreError::Database`].
pub async fn revoke(db: &mut PgConnection, project: ProjectId, id: ApiKeyId) -> Result<(), StoreError> {
    let revoked = sqlx::query!(
        "update api_key set revoked_at = now() where project_id = $1 and api_key_id = $2 and revoked_at is null",
        project.uuid(),
        id.uuid(),
    )
    .execute(db)
    .await?;
    if revoked.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("API key")) }
}

/// Returns the access of the key with this hash; `None`: unknown, revoked, expired by the database's clock, or its
/// project is archived. A caller that caches the answer forgets it when the key expires.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_hash(db: &mut PgConnection, secret_hash: &[u8]) -> Result<Option<KeyGrant>, StoreError> {
    let row = sqlx::query!(
        "select k.api_key_id, k.project_id, k.scopes, extract(epoch from k.expires_at - now())::float8 as expires_in,
             p.name as project, o.organization_id, o.name as organization
         from api_key k join project p using (project_id) join organization o using (organization_id)
         where k.secret_hash = $1 and k.revoked_at is null and p.archived_at is null
             and (k.expires_at is null or k.expires_at > now())",
        secret_hash,
    )
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (id, scopes) = (ApiKeyId::new(row.api_key_id), read_scopes(&row.scopes)?);
    let holder = Holder {
        actor: Actor::ApiKey(id),
        api_key_id: Some(id),
        project_id: ProjectId::new(row.project_id),
        project: row.project,
        organization_id: OrganizationId::new(row.organization_id),
        organization: row.organization,
        administers_installation: scopes.contains(&Scope::Installation),
    };
    let expires_in = row.expires_in.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    Ok(Some(KeyGrant { holder, scopes, expires_in }))
}

/// Records the time of use; at most once a minute, so that a busy key does not write with every request.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn touch(db: &mut PgConnection, id: ApiKeyId) -> Result<(), StoreError> {
    sqlx::query!(
        "update api_key set last_used_at = now()
         where api_key_id = $1 and (last_used_at is null or last_used_at < now() - interval '1 minute')",
        id.uuid(),
    )
    .execute(db)
    .await?;
    Ok(())
}

struct Row {
    api_key_id: uuid::Uuid,
    project_id: uuid::Uuid,
    name: String,
    hint: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    last_used_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for ApiKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            api_key_id: ApiKeyId::new(row.api_key_id),
            project_id: ProjectId::new(row.project_id),
            name: row.name,
            hint: row.hint,
            scopes: read_scopes(&row.scopes)?,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: row.expires_at,
        })
    }
}

fn read_scopes(names: &[String]) -> Result<Vec<Scope>, StoreError> {
    let read = names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
    read.map_err(|e| StoreError::Corrupt { column: "api_key.scopes", cause: Box::new(e) })
}
