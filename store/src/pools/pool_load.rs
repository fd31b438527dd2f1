//! The load of pools: requests in progress and waiting, as each process that sends requests to replicas counts them.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{error::StoreError, replica::row::ServedBase};

/// Seconds after which a count is not valid any more: its process writes it every second.
pub(crate) const FRESH_SECONDS: f64 = 4.0;

/// Writes the mean requests of a process to its pools during its last second.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn write(conn: &mut PgConnection, process: Uuid, loads: &[(ServedBase, f64)]) -> Result<(), StoreError> {
    let bases: Vec<Uuid> = loads.iter().map(|(base, _)| base.base_model_id.uuid()).collect();
    let quantizations: Vec<String> = loads.iter().map(|(base, _)| base.quantization.name().to_owned()).collect();
    let deployments: Vec<Option<Uuid>> = loads.iter().map(|(base, _)| base.deployment()).collect();
    let requests: Vec<f64> = loads.iter().map(|(_, requests)| *requests).collect();
    sqlx::query!(
        "insert into pool_load (process_id, base_model_id, quantization, deployment_id, requests)
         select $1, * from unnest($2::uuid[], $3::text[], $4::uuid[], $5::float8[])
         on conflict (process_id, base_model_id, quantization, deployment_id)
             do update set requests = excluded.requests, seen_at = now()",
        process,
        &bases,
        &quantizations,
        &deployments as &[Option<Uuid>],
        &requests,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes the counts of processes that have ended.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn forget_old(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("delete from pool_load where seen_at < now() - interval '1 minute'").execute(conn).await?;
    Ok(())
}
