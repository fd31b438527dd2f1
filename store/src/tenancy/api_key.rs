//! API keys: secrets that let a program into one project, each for what its scopes say.
//!
//! A secret is never stored: only its SHA-256. It holds 32 random bytes, so there is nothing to guess and no slow hash
//! is needed.

use attune_domain::{
    access::{Actor, Scope},
    id::{ApiKey as ApiKeyKind, ApiKeyId, OrganizationId, ProjectId},
    text::key_text,
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::StoreError, mint};

/// Who asks, and for which project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The key or the person.
    pub actor: Actor,
    /// The key; `None`: a person asks.
    pub api_key_id: Option<ApiKeyId>,
    /// What is asked for.
    pub project_id: ProjectId,
    /// The project's name: part of tuned models' names.
    pub project: String,
    /// The project's owner.
    pub organization_id: OrganizationId,
    /// The owner's name.
    pub organization: String,
    /// Whether they administer the installation.
    pub administers_installation: bool,
}

/// What a good key gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyGrant {
    /// To whom.
    pub holder: Holder,
    /// For what.
    pub scopes: Vec<Scope>,
    /// Until when.
    pub expires_at: Option<DateTime<Utc>>,
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

/// A key to be.
#[derive(Debug, Clone)]
pub struct NewKey<'a> {
    /// What it opens.
    pub project_id: ProjectId,
    /// For people.
    pub name: &'a str,
    /// For what.
    pub scopes: &'a [Scope],
    /// Until when.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Keeps a key that somebody made elsewhere, with every right, the installation's administration too, under its hash. One
/// that is there already keeps its project and name, and stays revoked if it was.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn ensure(db: &mut PgConnection, project: ProjectId, name: &str, secret: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into api_key (api_key_id, project_id, name, secret_hash, hint, scopes)
         values ($1, $2, $3, $4, $5, '{all,admin,installation}')
         on conflict (secret_hash) do update set scopes = excluded.scopes",
        mint::id::<ApiKeyKind>().uuid(),
        project.uuid(),
        name,
        mint::hash(secret),
        key_text::redact(secret),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Makes a key, and gives its secret: the only time that anybody sees it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert(db: &mut PgConnection, new: &NewKey<'_>) -> Result<(ApiKey, String), StoreError> {
    let secret = mint::api_key();
    let scopes: Vec<String> = new.scopes.iter().map(ToString::to_string).collect();
    let row = sqlx::query_as!(
        Row,
        "insert into api_key (api_key_id, project_id, name, secret_hash, hint, scopes, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning api_key_id, project_id, name, hint, scopes, created_at, last_used_at, expires_at",
        mint::id::<ApiKeyKind>().uuid(),
        new.project_id.uuid(),
        new.name,
        mint::hash(&secret),
        key_text::redact(&secret),
        &scopes[..],
        new.expires_at,
    )
    .fetch_one(db)
    .await?;
    Ok((row.try_into()?, secret))
}

/// A project's keys that are not revoked, newest first, behind `after`.
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

/// A key of a project.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was revoked. [`StoreError::Database`].
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

/// Ends a key for good.
///
/// # Errors
/// [`StoreError::NotFound`]: there is none, or it was revoked before. [`StoreError::Database`].
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

/// What the key with this hash gives; `None`: unknown, revoked, or its project is archived. Expiry is the caller's to
/// check, who may keep the answer for a moment.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_hash(db: &mut PgConnection, secret_hash: &[u8]) -> Result<Option<KeyGrant>, StoreError> {
    let row = sqlx::query!(
        "select k.api_key_id, k.project_id, k.scopes, k.expires_at, p.name as project, o.organization_id,
             o.name as organization
         from api_key k join project p using (project_id) join organization o using (organization_id)
         where k.secret_hash = $1 and k.revoked_at is null and p.archived_at is null",
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
    Ok(Some(KeyGrant { holder, scopes, expires_at: row.expires_at }))
}

/// Notes that the key was used; at most once a minute, so that a busy key does not write with every request.
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
