//! The requests of each pool in this process, in progress and waiting, which the autoscaler reads from the database.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attune_process::error_chain::chain;
use attune_store::{db, error::StoreError, pools::pool_load, replica::ServedBase};
use sqlx::PgPool;
use uuid::Uuid;

/// The interval between two writes.
const WRITE: Duration = Duration::from_secs(1);

/// The counts of all pools. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PoolLoads {
    process: Uuid,
    counts: Arc<Mutex<HashMap<ServedBase, Count>>>,
}

impl Default for PoolLoads {
    fn default() -> Self {
        Self { process: Uuid::new_v4(), counts: Arc::default() }
    }
}

/// The requests of a pool.
#[derive(Debug)]
struct Count {
    requests: u32,
    /// The time of the last change.
    changed: Instant,
    /// The beginning of the period that `request_seconds` covers.
    since: Instant,
    /// The sum of the requests' seconds in the period until `changed`.
    request_seconds: f64,
}

impl Count {
    const fn new(now: Instant) -> Self {
        Self { requests: 0, changed: now, since: now, request_seconds: 0.0 }
    }

    /// Adds the time until `now`. Callers read the clock before they wait for the lock, so `now` may be before the last
    /// change: no time is added twice.
    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.changed).as_secs_f64();
        self.request_seconds += elapsed * f64::from(self.requests);
        self.changed = self.changed.max(now);
    }

    /// Returns the mean since the last call.
    fn take_mean(&mut self, now: Instant) -> f64 {
        self.advance(now);
        let seconds = self.changed.saturating_duration_since(self.since).as_secs_f64();
        let sum = std::mem::take(&mut self.request_seconds);
        self.since = self.changed;
        if seconds > 0.0 { sum / seconds } else { f64::from(self.requests) }
    }
}

/// A request that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    loads: PoolLoads,
    base: ServedBase,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let now = Instant::now();
        if let Some(count) = self.loads.lock().get_mut(&self.base) {
            count.advance(now);
            count.requests = count.requests.saturating_sub(1);
        }
    }
}

impl PoolLoads {
    /// Returns the ID under which the means of this process are written.
    #[must_use]
    pub const fn process(&self) -> Uuid {
        self.process
    }

    /// Counts a request of a pool.
    pub(crate) fn count(&self, base: ServedBase) -> Counted {
        let now = Instant::now();
        let mut loads = self.lock();
        let count = loads.entry(base).or_insert_with(|| Count::new(now));
        count.advance(now);
        count.requests += 1;
        drop(loads);
        Counted { loads: self.clone(), base }
    }

    /// Returns the mean requests of each pool since the last call. A pool without requests is returned once more, as 0.
    fn take_means(&self, now: Instant) -> Vec<(ServedBase, f64)> {
        let mut means = Vec::new();
        self.lock().retain(|base, count| {
            let mean = count.take_mean(now);
            means.push((*base, mean));
            mean > 0.0 || count.requests > 0
        });
        means
    }

    /// Writes the means every second, without end.
    pub async fn write_on(&self, pool: PgPool) {
        loop {
            tokio::time::sleep(WRITE).await;
            let means = self.take_means(Instant::now());
            if means.is_empty() {
                continue;
            }
            if let Err(error) = write(&pool, self.process, &means).await {
                tracing::warn!("the load of the pools could not be written: {}", chain(&error));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServedBase, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(pool: &PgPool, process: Uuid, means: &[(ServedBase, f64)]) -> Result<(), StoreError> {
    let mut tx = db::platform(pool).await?;
    pool_load::write(&mut tx, process, means).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use attune_domain::id::BaseModelId;

    use super::*;

    #[test]
    fn a_mean_counts_each_request_for_its_time() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut count = Count::new(start);
        count.requests = 2;
        count.advance(at(500));
        count.requests = 4;
        assert!((count.take_mean(at(1000)) - 3.0).abs() < 1e-9);
        assert!((count.take_mean(at(2000)) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_time_before_the_last_change_is_not_counted_again() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut count = Count::new(start);
        count.requests = 1;
        count.advance(at(1000));
        count.advance(at(500));
        assert!((count.take_mean(at(1000)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_pool_without_requests_is_reported_as_zero_once() {
        let loads = PoolLoads::default();
        let base = ServedBase::as_imported(BaseModelId::new(Uuid::from_u128(1)));
        let (one, two) = (loads.count(base), loads.count(base));
        let later = |seconds: u64| Instant::now() + Duration::from_secs(seconds);
        let means = loads.take_means(later(10));
        assert!(means[0].0 == base && (means[0].1 - 2.0).abs() < 0.01, "{means:?}");
        drop((one, two));
        assert_eq!(loads.take_means(later(20)), [(base, 0.0)]);
        assert_eq!(loads.take_means(later(30)), []);
    }
}
