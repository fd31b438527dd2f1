//! The number of concurrent requests of a batch: its share of the capacity that live requests leave free.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attune_inference::context::Inference;
use attune_store::{
    batches::batch_capacity::{self, PoolCapacity},
    replica::ServedBase,
};

use crate::batches::error::BatchError;

/// The maximum number of concurrent requests of one batch.
const MOST_CONCURRENT: usize = 16;

/// The number of batches that this process executes at each pool of replicas. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchesAtPools(Arc<Mutex<HashMap<ServedBase, usize>>>);

/// A batch at a pool, which counts until this is dropped.
#[derive(Debug)]
pub(crate) struct BatchAtPool {
    all: BatchesAtPools,
    base: ServedBase,
}

impl BatchesAtPools {
    /// Counts a batch at a pool.
    pub(crate) fn enter(&self, base: ServedBase) -> BatchAtPool {
        *self.lock().entry(base).or_default() += 1;
        BatchAtPool { all: self.clone(), base }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServedBase, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BatchAtPool {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        if let Some(count) = counts.get_mut(&self.base) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.base);
            }
        }
    }
}

impl BatchAtPool {
    /// Returns the number of requests that the batch may have in progress now. `default_target` is the number of
    /// requests per replica, where deployments do not set it.
    ///
    /// # Errors
    /// [`BatchError::Failed`]: the database is unavailable.
    pub(crate) async fn share(&self, inference: &Inference, default_target: u32) -> Result<usize, BatchError> {
        let mut db = inference.platform().await?;
        let capacity = batch_capacity::of_pool(&mut db, self.base, inference.loads.process(), default_target).await?;
        drop(db);
        let count = self.all.lock().get(&self.base).copied().unwrap_or(1);
        Ok(share(capacity, count))
    }
}

/// Returns a batch's share of the free capacity of a pool that `batches` batches use: at least one request, which
/// yields to live ones at the replica.
fn share(capacity: PoolCapacity, batches: usize) -> usize {
    let whole = capacity.ready.max(0) as f64 * f64::from(capacity.target_concurrency);
    let free = (whole - capacity.live_requests).max(0.0) as usize;
    (free / batches.max(1)).clamp(1, MOST_CONCURRENT)
}

#[cfg(test)]
mod tests {
    use attune_domain::id::BaseModelId;
    use uuid::Uuid;

    use super::*;

    fn capacity(ready: i64, live_requests: f64) -> PoolCapacity {
        PoolCapacity { ready, target_concurrency: 8, live_requests }
    }

    #[test]
    fn batches_share_what_live_requests_leave_free() {
        assert_eq!(share(capacity(1, 0.0), 1), 8);
        assert_eq!(share(capacity(1, 2.5), 1), 5);
        assert_eq!(share(capacity(1, 0.0), 3), 2);
        assert_eq!(share(capacity(2, 4.0), 2), 6);
        assert_eq!(share(capacity(1, 100.0), 1), 1, "a batch is not starved");
        assert_eq!(share(capacity(0, 0.0), 1), 1);
    }

    #[test]
    fn limit_a_batch_has_at_most_sixteen_requests_in_progress() {
        assert_eq!(share(capacity(100, 0.0), 1), MOST_CONCURRENT);
    }

    #[test]
    fn a_batch_counts_at_its_pool_until_it_leaves() {
        let all = BatchesAtPools::default();
        let base = ServedBase::as_imported(BaseModelId::new(Uuid::from_u128(1)));
        let (one, two) = (all.enter(base), all.enter(base));
        assert_eq!(all.lock().get(&base), Some(&2));
        drop((one, two));
        assert!(all.lock().is_empty());
    }
}
