//! The adapters that requests name, and where replicas find them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Sha256,
    id::{AdapterVersionId, CheckpointId},
    run::RemoteFile,
    serve::merge::MergeRule,
};

/// The ID of an adapter version or of a checkpoint, or the digest of a merge; serialized as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AdapterKey {
    /// A published adapter version.
    Version(AdapterVersionId),
    /// A checkpoint of an adapter in training.
    Checkpoint(CheckpointId),
    /// Several adapters, merged: the digest of their IDs, their weights and the rule.
    Merged(Sha256),
}

impl fmt::Display for AdapterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(id) => id.fmt(f),
            Self::Checkpoint(id) => id.fmt(f),
            Self::Merged(digest) => digest.fmt(f),
        }
    }
}

/// The adapter that a request needs, and the files to fetch if it is not resident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterRef {
    /// The adapter's ID.
    pub id: AdapterKey,
    /// The files of a PEFT folder; none of a merge.
    pub files: Vec<RemoteFile>,
    /// The parts of a merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<AdapterMerge>,
}

/// Adapters that are merged into one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterMerge {
    /// The rule.
    pub rule: MergeRule,
    /// The adapters, in order.
    pub parts: Vec<AdapterPart>,
}

/// An adapter of a merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterPart {
    /// The adapter's ID.
    pub id: AdapterKey,
    /// The files of a PEFT folder.
    pub files: Vec<RemoteFile>,
    /// The weight.
    pub weight: f64,
}

/// The place where a replica finds an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterTier {
    /// In its memory, or being loaded for another request.
    Memory,
    /// In the node's disk cache.
    Disk,
    /// In the object store.
    Store,
}
