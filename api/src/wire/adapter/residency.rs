//! The residency of adapter versions: where replicas have them, and prefetches.

use std::ops::RangeInclusive;

use attune_domain::serve::AdapterTier;
use attune_store::replica::ReplicaResidency;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// The time for which a prefetched version may be kept, in seconds: from a minute to a day.
const PREFETCH_SECONDS: RangeInclusive<u32> = 60..=24 * 3600;

/// The default of [`NewPrefetch::seconds`].
const DEFAULT_PREFETCH_SECONDS: u32 = 600;

/// The request body for prefetching an adapter version.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPrefetch {
    /// The time for which replicas evict other adapters first, in seconds, from 60 to 86400. Defaults to 600.
    #[schema(minimum = 60, maximum = 86_400)]
    pub seconds: Option<i64>,
}

impl NewPrefetch {
    /// Returns the time for which the version is kept, in seconds.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: it is out of its range.
    pub fn checked(&self) -> Result<u32, ApiError> {
        let Some(given) = self.seconds else { return Ok(DEFAULT_PREFETCH_SECONDS) };
        let range = PREFETCH_SECONDS;
        u32::try_from(given).ok().filter(|seconds| range.contains(seconds)).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            ApiError::invalid("seconds", format!("Invalid 'seconds': {given} is not from {low} to {high}."))
        })
    }
}

/// An adapter version on a replica, as of the replica's last report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReplicaResidencyView {
    /// The replica's ID.
    pub replica: String,
    /// The replica's status: `ready`, or `draining` if it gets no new requests.
    #[schema(example = "ready")]
    pub status: &'static str,
    /// The place where the replica finds the adapter: `memory`, `disk` (the cache of its node) or `store` (the object
    /// store).
    #[schema(example = "memory")]
    pub tier: &'static str,
    /// The bytes that the adapter takes there; `null` in the object store.
    pub bytes: Option<u64>,
    /// The number of requests in progress that use it.
    pub requests: u64,
    /// The time of the last request for it, or of its prefetch, in Unix seconds; `null` if it is not in memory.
    pub last_used_at: Option<i64>,
    /// The time that its load took, without waiting for memory, in milliseconds; `null` if it is not in memory.
    pub load_ms: Option<u64>,
    /// The place that it was loaded from: `disk` or `store`; `null` if it is not in memory.
    pub loaded_from: Option<&'static str>,
    /// The time of the report, in Unix seconds.
    pub reported_at: i64,
}

impl From<ReplicaResidency> for ReplicaResidencyView {
    fn from(found: ReplicaResidency) -> Self {
        let memory = found.memory.as_ref();
        let tier = match (memory, found.disk) {
            (Some(_), _) => AdapterTier::Memory,
            (None, Some(_)) => AdapterTier::Disk,
            (None, None) => AdapterTier::Store,
        };
        let reported_at = found.reported_at.timestamp();
        Self {
            replica: found.replica_id.to_string(),
            status: if found.is_draining { "draining" } else { "ready" },
            tier: tier.name(),
            bytes: memory.map(|state| state.bytes).or(found.disk).map(|bytes| bytes.0),
            requests: memory.map_or(0, |state| state.requests),
            last_used_at: memory.map(|state| reported_at.saturating_sub_unsigned(state.idle_seconds)),
            load_ms: memory.map(|state| state.load_ms),
            loaded_from: memory.map(|state| state.loaded_from.name()),
            reported_at,
        }
    }
}

/// The residency of an adapter version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResidencyView {
    /// The object type, always `adapter.residency`.
    #[schema(example = "adapter.residency")]
    pub object: &'static str,
    /// The ID of the version.
    pub adapter_version: String,
    /// The model name of the version.
    pub model: String,
    /// The time until which a prefetch keeps it in memory, in Unix seconds; `null`: none does.
    pub prefetched_until: Option<i64>,
    /// The replicas of the version's base in its quantization, the oldest first.
    pub replicas: Vec<ReplicaResidencyView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_times_for_which_a_prefetched_version_is_kept() {
        let seconds = |seconds| NewPrefetch { seconds }.checked();
        assert_eq!(seconds(None).unwrap(), 600);
        for given in [60, 86_400] {
            assert_eq!(seconds(Some(given)).map(i64::from).unwrap(), given);
        }
        for given in [i64::MIN, -60, 0, 59, 86_401, i64::MAX] {
            let message = seconds(Some(given)).unwrap_err().body().error.message;
            assert_eq!(message, format!("Invalid 'seconds': {given} is not from 60 to 86400."));
        }
    }
}
