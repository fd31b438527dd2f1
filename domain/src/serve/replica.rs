//! A replica's specification, its reports and the responses to these.

use serde::{Deserialize, Serialize};

use super::{
    adapter::{AdapterKey, AdapterRef},
    draft::DraftSpec,
    engine::Engine,
    kv_cache::KvCacheDtype,
    residency::{AdapterState, DEFAULT_DISK_CACHE, DiskAdapter},
};
use crate::{
    bytes::Bytes,
    digest::Sha256,
    id::ReplicaId,
    placement::ServedCompute,
    run::{Directive, RemoteFile},
    spec::Quantization,
};

/// Everything a serving process needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeSpec {
    /// [`CONTRACT_VERSION`](super::CONTRACT_VERSION).
    pub version: u32,
    /// The replica's ID.
    pub replica_id: ReplicaId,
    /// The digest of the base's content; nodes use it as a cache key.
    pub base_digest: Sha256,
    /// The base model's files, a Hugging Face folder.
    pub base: Vec<RemoteFile>,
    /// The quantization that is applied to the base's weights before they are used.
    pub quantization: Quantization,
    /// The way of computing with the quantized weights.
    #[serde(default)]
    pub compute: ServedCompute,
    /// `true`: the replica drafts tokens of answers, and verifies several in one pass.
    #[serde(default = "speculates")]
    pub speculation: bool,
    /// The smaller base that drafts tokens where earlier text does not. It is not loaded without `speculation`.
    #[serde(default)]
    pub draft: Option<DraftSpec>,
    /// The number type of keys and values.
    #[serde(default)]
    pub kv_cache_dtype: KvCacheDtype,
    /// The program that generates the tokens.
    #[serde(default)]
    pub engine: Engine,
    /// Seconds between reports.
    pub heartbeat_seconds: u64,
    /// The memory for adapters and for keys and values, in addition to the base.
    pub memory_budget: Bytes,
    /// The limit of all adapters in the node's disk cache, in addition to those in use.
    #[serde(default = "default_disk_cache")]
    pub disk_cache: Bytes,
    /// The number of CPU threads.
    pub threads: u32,
}

/// Returns the value of specs from before they had it: the answers are the same.
const fn speculates() -> bool {
    true
}

/// Returns the limit of specs from before they had it.
const fn default_disk_cache() -> Bytes {
    DEFAULT_DISK_CACHE
}

/// One report of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The `host:port` that the replica listens on; `None` until the base is loaded.
    pub address: Option<String>,
    /// The number of requests in progress.
    pub active_requests: u64,
    /// The adapters in memory.
    pub resident_adapters: Vec<AdapterKey>,
    /// The states of these.
    #[serde(default)]
    pub adapter_states: Vec<AdapterState>,
    /// The adapters in the node's disk cache; `None` in a report that does not list them again.
    #[serde(default)]
    pub disk_adapters: Option<Vec<DiskAdapter>>,
    /// The reason why the replica cannot continue; set in its last report only.
    pub failed: Option<String>,
}

/// The response to a [`ReplicaReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReply {
    /// The instruction to the replica.
    pub directive: Directive,
    /// The pinned adapters: others are evicted from memory before them.
    #[serde(default)]
    pub pinned: Vec<AdapterKey>,
    /// Pinned adapters that the report does not list in memory, to load ahead of requests.
    #[serde(default)]
    pub prefetch: Vec<AdapterRef>,
    /// Reported adapters that were deleted, to remove from memory and disk.
    #[serde(default)]
    pub forget: Vec<AdapterKey>,
}

impl ReplicaReply {
    /// Returns a reply with a directive and no other instructions.
    #[must_use]
    pub const fn new(directive: Directive) -> Self {
        Self { directive, pinned: Vec::new(), prefetch: Vec::new(), forget: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_needs_only_its_directive() {
        let reply: ReplicaReply = serde_json::from_str(r#"{"directive": "continue"}"#).unwrap();
        assert_eq!(reply, ReplicaReply::new(Directive::Continue));
    }
}
