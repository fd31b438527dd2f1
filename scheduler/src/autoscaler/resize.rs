//! The change of a pool: new replicas are requested, or the least loaded ones drain.

use attune_domain::autoscale::{Decision, Reason};
use attune_store::{pools::pool_state::PoolState, replica};

use crate::{app::App, error::SchedulerError, reconciler::ended};

/// The pause after a replica of the pool failed, in seconds; each further failure doubles it.
const FIRST_PAUSE_SECONDS: f64 = 5.0;

/// The longest pause after a failure, in seconds.
const LONGEST_PAUSE_SECONDS: f64 = 300.0;

/// Changes the number of a pool's replicas to the wanted one. In a smaller pool, the wanted number of ready replicas
/// stays, even if others still load the base: those answer no requests yet.
///
/// # Errors
/// [`SchedulerError`]: the next pass tries again.
pub(super) async fn resize(app: &App, pool: &PoolState, decision: Decision) -> Result<(), SchedulerError> {
    let Decision { replicas, mode, reason } = decision;
    if replicas == pool.replicas || (replicas > pool.replicas && is_paused(pool)) {
        return Ok(());
    }
    let base = pool.base;
    let is_changed = if replicas > pool.replicas {
        grow(app, pool, replicas).await?;
        true
    } else if pool.max_replicas == 0 {
        close(app, pool).await? > 0
    } else if reason == Reason::Idle {
        let mut tx = app.begin().await?;
        let unplaced = replica::end_unplaced(&mut tx, base, pool.replicas.into()).await?;
        tx.commit().await?;
        ended::stop_idle_pool(app, base, pool.cooldown_seconds.into()).await?;
        unplaced > 0 || pool.ready > 0
    } else {
        let mut tx = app.begin().await?;
        let (surplus, surplus_ready) = (pool.replicas - replicas, pool.ready.saturating_sub(replicas));
        let drained = replica::drain(&mut tx, base, surplus.into(), surplus_ready.into()).await?;
        tx.commit().await?;
        drained > 0
    };
    if is_changed {
        let (mode, reason): (&str, &str) = (mode.into(), reason.into());
        tracing::info!(
            base.id = %base.base_model_id, base.quantization = %base.quantization, from = pool.replicas, to = replicas,
            requests = pool.requests, mode, reason, "resized a pool"
        );
    }
    Ok(())
}

/// Ends the pool of a deployment that has no replicas any more: those that answer requests drain, and those that still
/// load the base end at once. Returns the number of both.
async fn close(app: &App, pool: &PoolState) -> Result<usize, SchedulerError> {
    let mut tx = app.begin().await?;
    let starting = replica::end_starting(&mut tx, pool.base).await?;
    let drained = replica::drain(&mut tx, pool.base, pool.replicas.into(), pool.replicas.into()).await?;
    tx.commit().await?;
    Ok(starting + drained)
}

/// Lets the replicas drain that are of another kind than the pool's, once one of its kind is ready, or if there is no
/// request.
///
/// # Errors
/// [`SchedulerError`]: the next pass tries again.
pub(super) async fn replace_outdated(app: &App, pool: &PoolState) -> Result<(), SchedulerError> {
    if !is_replaced(pool) {
        return Ok(());
    }
    let mut tx = app.begin().await?;
    let replaced = replica::drain_outdated(&mut tx, pool.base, pool.kind).await?;
    tx.commit().await?;
    if replaced > 0 {
        let base = pool.base;
        tracing::info!(
            base.id = %base.base_model_id, base.quantization = %base.quantization, replicas = replaced,
            "replacing the replicas of a pool: its engine or its device has changed"
        );
    }
    Ok(())
}

fn is_replaced(pool: &PoolState) -> bool {
    pool.outdated > 0 && (pool.ready > 0 || pool.requests <= 0.0)
}

/// Requests replicas. The project of the deployment gets the events of the first one; those of the others would only
/// report the load.
async fn grow(app: &App, pool: &PoolState, replicas: u32) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    for index in pool.replicas..replicas {
        replica::start(&mut tx, pool.base, pool.project.filter(|_| index == 0)).await?;
    }
    Ok(tx.commit().await?)
}

/// Returns whether a replica of the pool failed too recently for another attempt.
fn is_paused(pool: &PoolState) -> bool {
    let doublings = pool.failures.saturating_sub(1).min(10);
    let pause = (FIRST_PAUSE_SECONDS * f64::from(1_u32 << doublings)).min(LONGEST_PAUSE_SECONDS);
    pool.failures > 0 && pool.failed_seconds < pause
}

#[cfg(test)]
mod tests {
    use attune_domain::{id::BaseModelId, offer::ReplicaKind};
    use attune_store::replica::ServedBase;
    use uuid::Uuid;

    use super::*;

    fn pool(failures: u32, failed_seconds: f64) -> PoolState {
        PoolState {
            base: ServedBase::as_imported(BaseModelId::new(Uuid::from_u128(1))),
            kind: ReplicaKind::default(),
            min_replicas: 1,
            max_replicas: 1,
            target_concurrency: 8,
            cooldown_seconds: 900,
            project: None,
            replicas: 0,
            outdated: 0,
            ready: 0,
            requests: 0.0,
            idle_seconds: f64::INFINITY,
            failures,
            failed_seconds,
        }
    }

    #[test]
    fn each_failure_doubles_the_pause() {
        assert!(!is_paused(&pool(0, f64::INFINITY)));
        assert!(is_paused(&pool(1, 4.0)) && !is_paused(&pool(1, 6.0)));
        assert!(is_paused(&pool(3, 19.0)) && !is_paused(&pool(3, 21.0)));
        assert!(is_paused(&pool(60, 299.0)) && !is_paused(&pool(60, 301.0)));
    }

    #[test]
    fn replicas_of_another_kind_stay_until_the_first_successor_is_ready() {
        let outdated = PoolState { outdated: 1, requests: 1.0, ..pool(0, f64::INFINITY) };
        assert!(!is_replaced(&outdated), "a request would fail");
        assert!(is_replaced(&PoolState { ready: 1, ..outdated.clone() }));
        assert!(is_replaced(&PoolState { requests: 0.0, ..outdated.clone() }));
        assert!(!is_replaced(&PoolState { outdated: 0, ready: 1, ..outdated }));
    }
}
