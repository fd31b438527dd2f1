//! Reports of replicas.

use attune_domain::{
    event::EventType,
    id::ReplicaId,
    run::Directive,
    serve::{ReplicaReply, ReplicaReport},
};
use sqlx::PgConnection;

use super::{
    end::end,
    events::tell,
    residency::{stored_disk, stored_states},
};
use crate::error::{StoreError, to_json};

/// The seconds that a replica drains at least: a process that has chosen it before has sent its request by then.
const LEAST_DRAIN_SECONDS: f64 = 5.0;

/// Applies a report: a heartbeat, an address, or the end. The end is also that of a replica that drains and has no
/// request in progress.
///
/// # Errors
/// [`StoreError::Stale`]: it has ended. [`StoreError::Database`].
#[tracing::instrument(skip(tx, report), fields(replica.id = %id))]
pub async fn take_report(
    tx: &mut PgConnection,
    id: ReplicaId,
    report: &ReplicaReport,
) -> Result<ReplicaReply, StoreError> {
    if let Some(reason) = &report.failed {
        return if end(tx, id, Some(reason)).await? {
            Ok(ReplicaReply::new(Directive::Stop))
        } else {
            Err(StoreError::Stale)
        };
    }
    let taken = sqlx::query!(
        r#"update replica set heartbeat_at = now(), address = coalesce($2, address),
             state = case when $2::text is not null and before.state = 'launching' then 'ready' else before.state end,
             last_used_at = case when $3 > 0 then now() else last_used_at end,
             active_requests = $3, resident_adapters = $4, adapter_states = $6,
             disk_adapters = coalesce($7, disk_adapters)
         from (select replica_id, state from replica where replica_id = $1 for update) as before
         where replica.replica_id = before.replica_id and before.state in ('launching', 'ready', 'draining')
         returning before.state <> replica.state as "came_up!",
             (replica.state = 'draining' and $3 = 0
                 and coalesce(draining_since < now() - make_interval(secs => $5), true)) as "is_drained!""#,
        id.uuid(),
        report.address,
        i32::try_from(report.active_requests).unwrap_or(i32::MAX),
        to_json("replica.resident_adapters", &report.resident_adapters)?,
        LEAST_DRAIN_SECONDS,
        stored_states(report)?,
        stored_disk(report),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let taken = taken.ok_or(StoreError::Stale)?;
    if taken.came_up {
        tell(tx, id, EventType::DeploymentReady).await?;
    }
    if taken.is_drained {
        end(tx, id, None).await?;
        return Ok(ReplicaReply::new(Directive::Stop));
    }
    Ok(ReplicaReply::new(Directive::Continue))
}
