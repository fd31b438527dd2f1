//! Typed IDs.
//!
//! They are generated only in `store`, which has the clock, and parsed and formatted here. The prefixes are those of
//! OpenAI's API (`file-…`, `ftjob-…`), so clients that inspect them keep working.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// An ID typed by its resource: a `JobId` cannot be passed where a `RunId` is expected.
///
/// Displayed as prefix and 32 hex digits (`ftjob-0190c2…`); stored as a plain PostgreSQL `uuid`. UUIDv7, so IDs sort by
/// creation time.
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// The kind of resource that an [`Id`] identifies.
pub trait Kind {
    /// The text before the digits, separator included.
    const PREFIX: &'static str;
    /// The noun for messages: `no such file`.
    const NOUN: &'static str;
}

/// The error for a text that is not an ID of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not the ID of a {noun}: it must be '{prefix}' and 32 hex digits")]
pub struct BadId {
    given: String,
    noun: &'static str,
    prefix: &'static str,
}

impl<K: Kind> Id<K> {
    /// Returns the ID with this UUID.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// Returns the plain UUID, for SQL.
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

// Implemented by hand, because a derive would require the same trait of `K`.
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
        #[doc = concat!("The ID of a ", $noun, ".")]
        pub type $alias = Id<$kind>;
    )*};
}

kinds! {
    /// The owner of projects.
    Organization, OrganizationId, "org-", "organization";
    /// The tenant: every row that a user creates belongs to a project.
    Project, ProjectId, "proj_", "project";
    /// A secret that authorizes a program.
    ApiKey, ApiKeyId, "key_", "API key";
    /// A user who is authenticated by an identity provider.
    Person, PersonId, "user-", "user";
    /// A line of the audit log.
    AuditLog, AuditLogId, "audit_log-", "audit log line";
    /// An uploaded file.
    File, FileId, "file-", "file";
    /// A file that is uploaded in parts.
    Upload, UploadId, "upload_", "upload";
    /// A part of such a file.
    UploadPart, UploadPartId, "part_", "part of an upload";
    /// An imported base model.
    BaseModel, BaseModelId, "base_", "base model";
    /// A fine-tuning job.
    Job, JobId, "ftjob-", "fine-tuning job";
    /// An event of a job: a state change or a message.
    JobEvent, JobEventId, "ftevent-", "job event";
    /// An outgoing event for webhooks.
    Event, EventId, "evt_", "event";
    /// A URL that receives a project's events.
    WebhookEndpoint, WebhookEndpointId, "we_", "webhook endpoint";
    /// The delivery of an event to an endpoint.
    WebhookDelivery, WebhookDeliveryId, "wd_", "webhook delivery";
    /// One attempt at a job, on one node.
    Run, RunId, "run_", "run";
    /// A saved state from which a run can resume.
    Checkpoint, CheckpointId, "ftckpt_", "checkpoint";
    /// The permission for another project to use a checkpoint.
    CheckpointPermission, CheckpointPermissionId, "cp_", "checkpoint permission";
    /// A named lineage of adapter versions.
    Adapter, AdapterId, "lineage_", "adapter";
    /// The adapter that a job published, immutable.
    AdapterVersion, AdapterVersionId, "adapter_", "adapter version";
    /// Another form of an adapter version, written on a node.
    Export, ExportId, "export_", "export";
    /// A file of requests that are processed asynchronously.
    Batch, BatchId, "batch_", "batch";
    /// One change of an adapter's alias.
    AdapterAliasMove, AdapterAliasMoveId, "aliasmove_", "move of an alias";
    /// A version that answers a share of an alias's requests.
    AdapterCanary, AdapterCanaryId, "canary_", "canary";
    /// A version that answers copies of a share of an alias's requests.
    AdapterShadow, AdapterShadowId, "shadow_", "shadow";
    /// Memory and processors that are reserved with a provider.
    Node, NodeId, "node_", "node";
    /// A serving process.
    Replica, ReplicaId, "replica_", "replica";
    /// A project's bounds for the replicas of a base model.
    Deployment, DeploymentId, "deploy_", "deployment";
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
            "'file-00000000000000000000000000000007' is not the ID of a fine-tuning job: it must be 'ftjob-' and 32 \
             hex digits"
        );
    }
}
