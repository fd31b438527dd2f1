//! The traffic of adapter versions and the comparisons of shadows: summed in memory like usage, and written every few
//! seconds. Whenever traffic of a canary is written, the canary is evaluated.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use attune_domain::{
    id::{AdapterCanaryId, AdapterShadowId},
    traffic::canary::Verdict,
};
use attune_process::error_chain::chain;
use attune_store::{
    adapters::{
        adapter_canary,
        adapter_shadow::{self, Comparisons},
        adapter_traffic::{self, Traffic, TrafficKey},
    },
    db,
    error::StoreError,
};
use sqlx::PgPool;

use crate::error::InferenceError;

/// The maximum number of rows of one kind that a transaction writes.
const ROWS: usize = 200;

/// The traffic and the comparisons that have been counted and not written yet.
#[derive(Debug, Default)]
pub struct TrafficMeter {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    traffic: HashMap<TrafficKey, Traffic>,
    comparisons: HashMap<AdapterShadowId, Comparisons>,
}

/// Sorted rows that one transaction writes.
struct Batch {
    traffic: Vec<(TrafficKey, Traffic)>,
    comparisons: Vec<(AdapterShadowId, Comparisons)>,
}

impl TrafficMeter {
    /// Adds requests of an adapter version.
    pub fn count(&self, key: TrafficKey, traffic: &Traffic) {
        self.lock().traffic.entry(key).or_default().add(traffic);
    }

    /// Adds comparisons of a shadow.
    pub fn compare(&self, shadow: AdapterShadowId, counts: &Comparisons) {
        self.lock().comparisons.entry(shadow).or_default().add(counts);
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what was counted of a version and not written yet.
    #[cfg(test)]
    pub(crate) fn counted(&self, key: TrafficKey) -> Option<Traffic> {
        self.lock().traffic.get(&key).cloned()
    }

    /// Writes the counts to the database, at most `ROWS` rows of each kind in a transaction, and evaluates the
    /// canaries among them. What could not be written is kept for the next attempt.
    ///
    /// # Errors
    /// [`InferenceError::Busy`], [`InferenceError::Internal`]: the database is unavailable.
    pub async fn write(&self, pool: &PgPool) -> Result<(), InferenceError> {
        let mut first_error = None;
        for batch in self.take() {
            if let Err(error) = write(pool, &batch).await {
                batch.traffic.iter().for_each(|(key, traffic)| self.count(*key, traffic));
                batch.comparisons.iter().for_each(|(shadow, counts)| self.compare(*shadow, counts));
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Takes all counts, in batches.
    fn take(&self) -> Vec<Batch> {
        let counted = std::mem::take(&mut *self.lock());
        let mut traffic: Vec<_> = counted.traffic.into_iter().collect();
        let mut comparisons: Vec<_> = counted.comparisons.into_iter().collect();
        traffic.sort_unstable_by_key(|(key, _)| *key);
        comparisons.sort_unstable_by_key(|(shadow, _)| *shadow);
        let mut batches = Vec::new();
        while !traffic.is_empty() || !comparisons.is_empty() {
            let rest = (traffic.split_off(traffic.len().min(ROWS)), comparisons.split_off(comparisons.len().min(ROWS)));
            batches.push(Batch { traffic, comparisons });
            (traffic, comparisons) = rest;
        }
        batches
    }
}

async fn write(pool: &PgPool, batch: &Batch) -> Result<(), StoreError> {
    let mut tx = db::platform(pool).await?;
    adapter_traffic::add(&mut tx, &batch.traffic).await?;
    adapter_shadow::add(&mut tx, &batch.comparisons).await?;
    tx.commit().await?;
    let canaries: BTreeSet<AdapterCanaryId> =
        batch.traffic.iter().filter_map(|(key, _)| key.adapter_canary_id).collect();
    for canary in canaries {
        // The counts are written: an error here leaves that to the next request of the canary.
        if let Err(error) = evaluate(pool, canary).await {
            tracing::warn!(canary.id = %canary, "a canary could not be evaluated: {}", chain(&error));
        }
    }
    Ok(())
}

async fn evaluate(pool: &PgPool, canary: AdapterCanaryId) -> Result<(), StoreError> {
    let mut tx = db::platform(pool).await?;
    let verdict = adapter_canary::evaluate(&mut tx, canary).await?;
    tx.commit().await?;
    if let Verdict::Abort(reason) = verdict {
        tracing::warn!(canary.id = %canary, "the canary {canary} is aborted: {reason}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use attune_domain::id::{AdapterVersionId, ProjectId};
    use uuid::Uuid;

    use super::*;

    fn key(version: u128) -> TrafficKey {
        TrafficKey {
            adapter_version_id: AdapterVersionId::new(Uuid::from_u128(version)),
            adapter_canary_id: None,
            project_id: ProjectId::new(Uuid::from_u128(1)),
        }
    }

    #[test]
    fn batches_are_sorted_and_bounded_and_hold_everything() {
        let meter = TrafficMeter::default();
        let one = Traffic { requests: 1, ..Traffic::default() };
        for version in (0..450).rev() {
            meter.count(key(version), &one);
            meter.count(key(version), &one);
        }
        let shadow = AdapterShadowId::new(Uuid::from_u128(9));
        meter.compare(shadow, &Comparisons { compared: 1, ..Comparisons::default() });
        let batches = meter.take();
        assert_eq!(batches.iter().map(|batch| batch.traffic.len()).collect::<Vec<_>>(), [200, 200, 50]);
        assert_eq!(batches.iter().map(|batch| batch.comparisons.len()).sum::<usize>(), 1);
        let keys: Vec<_> = batches.iter().flat_map(|batch| &batch.traffic).map(|(key, _)| *key).collect();
        assert!(keys.is_sorted());
        assert!(batches.iter().flat_map(|batch| &batch.traffic).all(|(_, traffic)| traffic.requests == 2));
        assert!(meter.take().is_empty());
    }

    #[tokio::test]
    async fn traffic_that_could_not_be_written_is_kept() {
        let meter = TrafficMeter::default();
        meter.count(key(1), &Traffic { requests: 3, ..Traffic::default() });
        let away = sqlx::postgres::PgPoolOptions::new()
            .acquire_timeout(Duration::from_millis(200))
            .connect_lazy("postgres://attune@127.0.0.1:1/attune")
            .unwrap();
        assert!(meter.write(&away).await.is_err());
        assert_eq!(meter.take()[0].traffic[0].1.requests, 3);
    }
}
