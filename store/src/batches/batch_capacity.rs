//! The capacity of a pool that live requests leave to batches.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{error::StoreError, pools::pool_load::FRESH_SECONDS, replica::ServedBase};

/// The capacity of a pool, and the live requests in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoolCapacity {
    /// The number of ready replicas.
    pub ready: i64,
    /// The requests per replica, in progress and waiting: those of the pool's deployment, or the default.
    pub target_concurrency: i32,
    /// The live requests, in progress and waiting.
    pub live_requests: f64,
}

/// Returns the capacity of a pool. `process` sends only the requests of batches: its own load is no live one.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_pool(
    db: &mut PgConnection,
    base: ServedBase,
    process: Uuid,
    default_target: u32,
) -> Result<PoolCapacity, StoreError> {
    Ok(sqlx::query_as!(
        PoolCapacity,
        r#"select
             (select count(*) from replica
                 where base_model_id = $1 and quantization = $2 and deployment_id is not distinct from $6
                     and state = 'ready') as "ready!",
             coalesce((select target_concurrency from deployment where deployment_id = $6), $4)
                 as "target_concurrency!",
             (select coalesce(sum(requests), 0)::float8 from pool_load
                 where base_model_id = $1 and quantization = $2 and deployment_id is not distinct from $6
                     and process_id <> $3
                     and seen_at > now() - make_interval(secs => $5)) as "live_requests!""#,
        base.base_model_id.uuid(),
        base.quantization.name(),
        process,
        default_target as i32,
        FRESH_SECONDS,
        base.deployment(),
    )
    .fetch_one(db)
    .await?)
}
