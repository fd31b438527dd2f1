//! Ids that know what they name.
//!
//! Minted only in `store`, where the clock lives; parsed and shown here. The prefixes are the ones that OpenAI's
//! clients have always seen (`file-…`, `ftjob-…`), so code that looks at them keeps working.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// An id that knows what it names: a `JobId` cannot stand where a `RunId` is wanted.
///
/// Shown as prefix and 32 hex digits (`ftjob-0190c2…`); stored as a plain Postgres `uuid`. UUIDv7, so ids sort by birth.
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// What an [`Id`] names.
pub trait Kind {
    /// What stands before the digits, separator included.
    const PREFIX: &'static str;
    /// The word for it in a message: `no such file`.
    const NOUN: &'static str;
}

/// The text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not the id of a {noun}: it must be '{prefix}' and 32 hex digits")]
pub struct BadId {
    given: String,
    noun: &'static str,
    prefix: &'static str,
}

impl<K: Kind> Id<K> {
    /// The id that `uuid` is.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// The bare number, for SQL.
    #[must_use]
    pub const fn uuid(&self) -> Uuid {
        self.0
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", K::PREFIX, self.0.simple())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        text.strip_prefix(K::PREFIX)
            .filter(|digits| digits.len() == 32)
            .and_then(|digits| Uuid::try_parse(digits).ok())
            .map(Self::new)
            .ok_or_else(|| BadId { given: text.chars().take(80).collect(), noun: K::NOUN, prefix: K::PREFIX })
    }
}

// By hand, because a derive would ask the same of `K`.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $alias:ident, $prefix:literal, $noun:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $kind {}
        impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
            const NOUN: &'static str = $noun;
        }
        #[doc = concat!("The id of a ", $noun, ".")]
        pub type $alias = Id<$kind>;
    )*};
}

kinds! {
    /// Who owns projects.
    Organization, OrganizationId, "org-", "organization";
    /// The tenant: every row that a user made belongs to one.
    Project, ProjectId, "proj_", "project";
    /// A secret that lets a program in.
    ApiKey, ApiKeyId, "key_", "API key";
    /// Somebody whom an identity provider vouches for.
    Person, PersonId, "user-", "user";
    /// A line of the audit log.
    AuditLog, AuditLogId, "audit_log-", "audit log line";
    /// An uploaded file.
    File, FileId, "file-", "file";
    /// A file that comes in parts.
    Upload, UploadId, "upload_", "upload";
    /// A part of such a file.
    UploadPart, UploadPartId, "part_", "part of an upload";
    /// A base model that was imported.
    BaseModel, BaseModelId, "base_", "base model";
    /// A fine-tuning job.
    Job, JobId, "ftjob-", "fine-tuning job";
    /// Something that a job went through.
    JobEvent, JobEventId, "ftevent-", "job event";
    /// Something that users can be told of outside.
    Event, EventId, "evt_", "event";
    /// Where a project wants to be told of events.
    WebhookEndpoint, WebhookEndpointId, "we_", "webhook endpoint";
    /// An event on its way to an endpoint.
    WebhookDelivery, WebhookDeliveryId, "wd_", "webhook delivery";
    /// One attempt at a job, on one node.
    Run, RunId, "run_", "run";
    /// A state from which a run can go on.
    Checkpoint, CheckpointId, "ftckpt_", "checkpoint";
    /// Another project's right to use a checkpoint.
    CheckpointPermission, CheckpointPermissionId, "cp_", "checkpoint permission";
    /// A named lineage of adapter versions.
    Adapter, AdapterId, "lineage_", "adapter";
    /// The adapter that a job gave, immutable.
    AdapterVersion, AdapterVersionId, "adapter_", "adapter version";
    /// Requests of a file, answered when there is time.
    Batch, BatchId, "batch_", "batch";
    /// One move of an adapter's alias.
    AdapterAliasMove, AdapterAliasMoveId, "aliasmove_", "move of an alias";
    /// Memory and processors that were reserved with a provider.
    Node, NodeId, "node_", "node";
    /// A serving process.
    Replica, ReplicaId, "replica_", "replica";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_shown() {
        let id = JobId::new(Uuid::from_u128(7));
        assert_eq!(id.to_string(), "ftjob-00000000000000000000000000000007");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused_by_name() {
        let file = FileId::new(Uuid::from_u128(7)).to_string();
        let refused = file.parse::<JobId>().unwrap_err().to_string();
        assert_eq!(
            refused,
            "'file-00000000000000000000000000000007' is not the id of a fine-tuning job: it must be 'ftjob-' and 32 hex digits"
        );
    }
}
