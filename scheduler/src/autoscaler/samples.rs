//! The samples of pools, and the decisions about them. A scheduler that starts has none: until it has some minutes of
//! samples, no pool gets smaller, apart from idle ones.

use std::{collections::HashMap, time::Duration};

use attune_domain::autoscale::{self, Decision, KEPT_SECONDS, Replicas, Sample, Settings};
use attune_store::{pools::pool_state::PoolState, replica::ServedBase};

/// The samples of each pool.
#[derive(Debug, Default)]
pub(crate) struct Autoscaler(HashMap<ServedBase, Vec<Sample>>);

impl Autoscaler {
    /// Forgets the samples of pools that do not exist any more.
    pub(super) fn forget_all_but(&mut self, pools: &[PoolState]) {
        self.0.retain(|base, _| pools.iter().any(|pool| pool.base == *base));
    }

    /// Adds the state of a pool to its samples, and decides its number of replicas.
    pub(super) fn decide(&mut self, pool: &PoolState, at: Duration) -> Decision {
        let now = at.as_secs_f64();
        let samples = self.0.entry(pool.base).or_default();
        samples.retain(|sample| now - sample.at <= KEPT_SECONDS);
        samples.push(Sample { at: now, requests: pool.requests, ready: pool.ready });
        let settings = Settings {
            min_replicas: pool.min_replicas,
            max_replicas: pool.max_replicas,
            target_concurrency: pool.target_concurrency,
            cooldown_seconds: pool.cooldown_seconds,
        };
        let replicas = Replicas { current: pool.replicas, ready: pool.ready, idle_seconds: pool.idle_seconds };
        autoscale::decide(&settings, samples, replicas)
    }
}
