//! The residency of adapters: an adapter is in a replica's memory, in the disk cache of its node, or only in the object
//! store.

use serde::{Deserialize, Serialize};

use super::adapter::{AdapterKey, AdapterTier};
use crate::bytes::Bytes;

/// The default of the limit of all adapters in a node's disk cache.
pub const DEFAULT_DISK_CACHE: Bytes = Bytes(16 << 30);

impl AdapterTier {
    /// Returns the tier's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Store => "store",
        }
    }
}

impl AdapterKey {
    /// Parses the ID of an adapter version or of a checkpoint.
    #[must_use]
    pub fn of_id(text: &str) -> Option<Self> {
        text.parse().map(Self::Version).or_else(|_| text.parse().map(Self::Checkpoint)).ok()
    }
}

/// The state of an adapter in a replica's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterState {
    /// The adapter's ID.
    pub id: AdapterKey,
    /// The memory of its factors.
    pub bytes: Bytes,
    /// The number of requests that use it.
    pub requests: u64,
    /// Seconds since the last request for it, or its prefetch, came.
    pub idle_seconds: u64,
    /// The time that its load took, without waiting for memory, in milliseconds.
    pub load_ms: u64,
    /// The place that it was loaded from.
    pub loaded_from: AdapterTier,
}

/// An adapter in a node's disk cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAdapter {
    /// The adapter's ID.
    pub id: AdapterKey,
    /// The size of its files.
    pub bytes: Bytes,
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        digest::Sha256,
        id::{AdapterVersionId, CheckpointId},
    };

    #[test]
    fn a_tier_is_serialized_as_its_name() {
        for tier in [AdapterTier::Memory, AdapterTier::Disk, AdapterTier::Store] {
            assert_eq!(serde_json::to_value(tier).unwrap(), tier.name());
        }
    }

    #[test]
    fn an_id_is_parsed_as_what_its_prefix_says() {
        let version = AdapterKey::Version(AdapterVersionId::new(Uuid::from_u128(7)));
        let checkpoint = AdapterKey::Checkpoint(CheckpointId::new(Uuid::from_u128(7)));
        for key in [version, checkpoint] {
            assert_eq!(AdapterKey::of_id(&key.to_string()), Some(key));
        }
        let merged = AdapterKey::Merged(Sha256::from_digest([7; 32]));
        for other in ["", "work-1", &merged.to_string()] {
            assert_eq!(AdapterKey::of_id(other), None, "{other}");
        }
    }
}
