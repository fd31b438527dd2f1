//! Idempotency keys: the holder, whether its change was committed, and the stored response.
//!
//! A claim lives as long as its holder renews it. The transaction that makes the holder's change also records that it
//! was made (`mark`), so the outcome is known after a crash and no change is made twice.

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{db::Tenant, error::StoreError, sweep_batch::Batch};

/// The lease of a claim, in seconds, unless it is renewed.
pub const HELD_SECONDS: i32 = 60;

/// Hours that a key and its response are kept.
pub const KEPT_HOURS: i32 = 24;

/// A key held by a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key's tenant.
    pub tenant: Tenant,
    /// The key's text, chosen by the caller.
    pub key: String,
    /// The ID that distinguishes this claim from an earlier one of the same key.
    pub claim: Uuid,
}

/// A stored response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers that describe the body.
    pub headers: Value,
    /// The response body.
    pub body: Vec<u8>,
}

/// The state of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// New, or left behind by a process that is gone and had changed nothing: the request proceeds under this claim.
    Free(Claim),
    /// The first request with this key is still in progress.
    Held,
    /// The first request committed its change, but its process ended before the response was stored.
    Lost,
    /// Method, path or query differ: holds those of the first request.
    Other(String),
    /// The first request was answered.
    Answered {
        /// The first request's claim.
        claim: Uuid,
        /// SHA-256 of the first request's body.
        body_sha256: Vec<u8>,
        /// The response to the first request.
        answer: Answer,
    },
}

/// Claims the key for a request, or returns its state.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(db: &mut PgConnection, tenant: Tenant, key: &str, request: &str) -> Result<Found, StoreError> {
    let claim = Uuid::new_v4();
    let (project, organization) = match tenant {
        Tenant::Project(id) => (Some(id.uuid()), None),
        Tenant::Organization(id) => (None, Some(id.uuid())),
    };
    let taken = sqlx::query_scalar!(
        "insert into idempotency_key (project_id, organization_id, key, claim, request, held_until)
         values ($1, $2, $3, $4, $5, now() + make_interval(secs => $6::int))
         on conflict (tenant_id, key) do update
             set claim = excluded.claim, request = excluded.request, held_until = excluded.held_until,
                 body_sha256 = null, applied = false, status = null, headers = null, answer = null, created_at = now()
             where idempotency_key.created_at < now() - make_interval(hours => $7::int)
                or (idempotency_key.status is null and not idempotency_key.applied
                    and idempotency_key.held_until < now())
         returning claim",
        project,
        organization,
        key,
        claim,
        request,
        HELD_SECONDS,
        KEPT_HOURS,
    )
    .fetch_optional(&mut *db)
    .await?;
    if taken.is_some() {
        return Ok(Found::Free(Claim { tenant, key: key.to_owned(), claim }));
    }
    look(db, tenant, key, request).await
}

async fn look(db: &mut PgConnection, tenant: Tenant, key: &str, request: &str) -> Result<Found, StoreError> {
    let row = sqlx::query!(
        r#"select request, claim, body_sha256, status, headers, answer, applied and held_until < now() as "lost!"
           from idempotency_key where tenant_id = $1 and key = $2"#,
        tenant.uuid(),
        key,
    )
    .fetch_optional(db)
    .await?;
    // The row was deleted between the two statements: its request has just failed, and the caller may retry.
    let Some(row) = row else { return Ok(Found::Held) };
    if row.request != request {
        return Ok(Found::Other(row.request));
    }
    Ok(match (row.status, row.answer) {
        (Some(status), Some(body)) => Found::Answered {
            claim: row.claim,
            body_sha256: row.body_sha256.unwrap_or_default(),
            answer: Answer {
                status: u16::try_from(status).unwrap_or(500),
                headers: row.headers.unwrap_or_default(),
                body,
            },
        },
        _ if row.lost => Found::Lost,
        _ => Found::Held,
    })
}

/// Renews a claim.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn renew(db: &mut PgConnection, claim: &Claim) -> Result<(), StoreError> {
    sqlx::query!(
        "update idempotency_key set held_until = now() + make_interval(secs => $4::int)
         where tenant_id = $1 and key = $2 and claim = $3",
        claim.tenant.uuid(),
        claim.key,
        claim.claim,
        HELD_SECONDS,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Records, in the transaction of the request's change, that the change is made under this claim.
///
/// # Errors
/// [`StoreError::Stale`]: another request has taken the key over.
pub async fn mark(tx: &mut PgConnection, claim: &Claim) -> Result<(), StoreError> {
    let marked = sqlx::query!(
        "update idempotency_key set applied = true where tenant_id = $1 and key = $2 and claim = $3",
        claim.tenant.uuid(),
        claim.key,
        claim.claim,
    )
    .execute(tx)
    .await?;
    if marked.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Stores the response for repeated requests.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn answer(
    db: &mut PgConnection,
    claim: &Claim,
    body_sha256: &[u8],
    answer: &Answer,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update idempotency_key set status = $4, headers = $5, answer = $6, body_sha256 = $7
         where tenant_id = $1 and key = $2 and claim = $3",
        claim.tenant.uuid(),
        claim.key,
        claim.claim,
        i16::try_from(answer.status).unwrap_or(500),
        answer.headers,
        answer.body,
        body_sha256,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Releases a key whose request changed nothing. `false`: it changed something, so the key is kept.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn release(db: &mut PgConnection, claim: &Claim) -> Result<bool, StoreError> {
    let released = sqlx::query!(
        "delete from idempotency_key where tenant_id = $1 and key = $2 and claim = $3 and not applied",
        claim.tenant.uuid(),
        claim.key,
        claim.claim,
    )
    .execute(db)
    .await?;
    Ok(released.rows_affected() == 1)
}

/// Deletes expired keys, of all projects.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn forget_old(db: &mut PgConnection) -> Result<Batch, StoreError> {
    let forgotten = sqlx::query!(
        "delete from idempotency_key where created_at < now() - make_interval(hours => $1::int)",
        KEPT_HOURS
    )
    .execute(db)
    .await?;
    Ok(Batch { gone: forgotten.rows_affected(), has_more: false })
}
