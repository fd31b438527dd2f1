//! Prefetches: versions that the replicas of their base load ahead of requests, and keep for some time.

use attune_domain::{
    id::{AdapterVersionId, ProjectId},
    run::Blob,
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    error::{StoreError, json},
    replica::row::ServedBase,
};

/// The maximum number of versions of a project that are kept for a prefetch at the same time.
pub const MOST_PER_PROJECT: i64 = 16;

/// The maximum number of versions that a pool keeps for prefetches, of all projects together.
const MOST_PER_POOL: i64 = 256;

/// A version to prefetch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prefetched {
    /// The version's ID.
    pub(crate) adapter_version_id: AdapterVersionId,
    /// The files of its PEFT folder.
    pub(crate) files: Vec<Blob>,
}

/// Prefetches a version and keeps it for some seconds; replaces an earlier prefetch of it. Returns the end of that
/// time, or `None` if the project has [`MOST_PER_PROJECT`] other ones.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn set(
    tx: &mut PgConnection,
    project: ProjectId,
    id: AdapterVersionId,
    seconds: u32,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    // Two requests of a project at the same time would each count without the other's.
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('prefetches ' || $1::uuid::text, 0))", project.uuid())
        .execute(&mut *tx)
        .await?;
    let expires_at = sqlx::query_scalar!(
        "insert into adapter_prefetch (adapter_version_id, project_id, expires_at)
         select $1, $2, now() + make_interval(secs => $3)
         where (select count(*) from adapter_prefetch
             where project_id = $2 and adapter_version_id <> $1 and expires_at > now()) < $4
         on conflict (adapter_version_id) do update set expires_at = excluded.expires_at
         returning expires_at",
        id.uuid(),
        project.uuid(),
        f64::from(seconds),
        MOST_PER_PROJECT,
    )
    .fetch_optional(tx)
    .await?;
    Ok(expires_at)
}

/// Returns the time until which a version is kept for a prefetch, if it is.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn until(
    db: &mut PgConnection,
    project: ProjectId,
    id: AdapterVersionId,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let expires_at = sqlx::query_scalar!(
        "select expires_at from adapter_prefetch
         where project_id = $1 and adapter_version_id = $2 and expires_at > now()",
        project.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(expires_at)
}

/// Returns the versions that are kept for a prefetch, of all projects whose requests the pool answers: the last to
/// expire of each project first, and at most [`MOST_PER_POOL`], so that no project displaces those of others.
pub(crate) async fn of_pool(conn: &mut PgConnection, base: ServedBase) -> Result<Vec<Prefetched>, StoreError> {
    let rows = sqlx::query!(
        "select v.adapter_version_id, v.files
         from adapter_prefetch as p join adapter_version as v on v.adapter_version_id = p.adapter_version_id
             join project on project.project_id = p.project_id and project.archived_at is null
         where v.base_model_id = $1 and v.quantization = $2 and v.deleted_at is null and p.expires_at > now()
             and deployment_of(p.project_id, $1, $2) is not distinct from $3
         order by row_number() over (partition by p.project_id order by p.expires_at desc, p.adapter_version_id),
             p.expires_at desc, v.adapter_version_id
         limit $4",
        base.base_model_id.uuid(),
        base.quantization.name(),
        base.deployment(),
        MOST_PER_POOL,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let adapter_version_id = AdapterVersionId::new(row.adapter_version_id);
            Ok(Prefetched { adapter_version_id, files: json("adapter_version.files", row.files)? })
        })
        .collect()
}
