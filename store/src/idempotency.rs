//! Keys that make a request safe to repeat: who holds one, what was made under it, and what was answered.
//!
//! A claim lives as long as its holder renews it. Whether the holder's change was kept is noted in the very transaction
//! of that change ([`mark`]), so that after a crash it is known and nothing is made twice.

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{db::Tenant, error::StoreError, sweep_batch::Batch};

/// How long a claim lasts without being renewed, in seconds.
pub const HELD_SECONDS: i32 = 60;

/// How long an answer is kept, in hours.
pub const KEPT_HOURS: i32 = 24;

/// A key in a request's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose key.
    pub tenant: Tenant,
    /// As the caller chose it.
    pub key: String,
    /// Tells this claim from an earlier one of the same key.
    pub claim: Uuid,
}

/// An answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The headers that say something of the body.
    pub headers: Value,
    /// The body.
    pub body: Vec<u8>,
}

/// What a key was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// New, or left behind by a process that is gone and had made nothing: the request goes on under this claim.
    Free(Claim),
    /// The first request with it goes on still.
    Held,
    /// The first request made its change, but its process was gone before the answer was kept.
    Lost,
    /// Method, path or query were others: holds those of the first request.
    Other(String),
    /// It was answered.
    Answered {
        /// The first request's claim.
        claim: Uuid,
        /// SHA-256 of the first request's body.
        body_sha256: Vec<u8>,
        /// What it was told.
        answer: Answer,
    },
}

/// Takes the key for a request, or says what is known of it.
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
    // Gone between the two statements: its request failed just now, and the caller may try again.
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

/// Goes on holding the key.
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

/// Notes, in the transaction of the request's change, that the change is made under this claim.
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

/// Keeps the answer, to be given to whoever repeats the request.
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

/// Lets go of a key whose request made nothing. `false`: it made something, so the key stays.
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

/// Forgets the keys whose time is over, of all projects.
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
