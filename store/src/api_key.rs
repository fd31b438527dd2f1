//! API keys: secrets that let a program in.
//!
//! A secret is never stored: only its SHA-256. It holds 32 random bytes, so there is nothing to guess and no slow hash
//! is needed.

use attune_domain::id::{ApiKey, ApiKeyId, OrganizationId, ProjectId};
use sqlx::PgConnection;

use crate::{error::StoreError, mint};

/// Whom a key lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The key.
    pub api_key_id: ApiKeyId,
    /// What it opens.
    pub project_id: ProjectId,
    /// The project's name: part of tuned models' names.
    pub project: String,
    /// The project's owner.
    pub organization_id: OrganizationId,
    /// The owner's name.
    pub organization: String,
}

/// Keeps a key under its hash. A hash that is there already is left as it is, whatever its project or name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn ensure(
    db: &mut PgConnection,
    project: ProjectId,
    name: &str,
    secret_hash: &[u8],
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into api_key (api_key_id, project_id, name, secret_hash) values ($1, $2, $3, $4)
         on conflict (secret_hash) do nothing",
        mint::id::<ApiKey>().uuid(),
        project.uuid(),
        name,
        secret_hash,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Whom the key with this hash lets in; `None`: unknown or revoked.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_hash(db: &mut PgConnection, secret_hash: &[u8]) -> Result<Option<Holder>, StoreError> {
    let row = sqlx::query!(
        "select k.api_key_id, k.project_id, p.name as project, o.organization_id, o.name as organization
         from api_key k join project p using (project_id) join organization o using (organization_id)
         where k.secret_hash = $1 and k.revoked_at is null",
        secret_hash,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Holder {
        api_key_id: ApiKeyId::new(row.api_key_id),
        project_id: ProjectId::new(row.project_id),
        project: row.project,
        organization_id: OrganizationId::new(row.organization_id),
        organization: row.organization,
    }))
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
