//! The facts about a platform, read from its database, its object store, its processes and its receiver of webhooks.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::receiver::Delivery;

/// A job. Its ID is 32 hex digits, here and below.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Job {
    /// The job's ID.
    pub(crate) job: String,
    /// The state.
    pub(crate) state: String,
    /// The error's message.
    pub(crate) error: Option<String>,
}

/// An adapter version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Version {
    /// The job that published it.
    pub(crate) job: String,
    /// The files.
    pub(crate) files: Vec<FileOf>,
}

/// A file of an adapter version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct FileOf {
    /// The name.
    pub(crate) name: String,
    /// The digest.
    pub(crate) sha256: String,
    /// The size.
    pub(crate) bytes: u64,
}

/// A reported training step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Step {
    /// The job's ID.
    pub(crate) job: String,
    /// The number of the step.
    pub(crate) step: u64,
    /// The training loss, as PostgreSQL writes it.
    pub(crate) loss: String,
}

/// A run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct RunOf {
    /// The job's ID.
    pub(crate) job: String,
    /// The number of steps that were counted.
    pub(crate) steps: u64,
    /// The number of steps from the checkpoint that it resumed from to the job's last.
    pub(crate) most: u64,
}

/// The usage of a job, refunds subtracted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    /// The job's ID.
    pub(crate) job: String,
    /// The trained tokens.
    pub(crate) tokens: i64,
}

/// An event that a job has ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct End {
    /// The job's ID.
    pub(crate) job: String,
    /// The event's type.
    pub(crate) kind: String,
}

/// An object of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    /// The digest of its content.
    pub(crate) sha256: String,
    /// The size.
    pub(crate) bytes: u64,
}

/// All facts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// All jobs.
    pub(crate) jobs: Vec<Job>,
    /// The adapter versions that jobs published.
    pub(crate) versions: Vec<Version>,
    /// The reported steps, more than one of a step that was done again.
    pub(crate) steps: Vec<Step>,
    /// The runs of jobs that began to train.
    pub(crate) runs: Vec<RunOf>,
    /// The usage of each job.
    pub(crate) usage: Vec<Usage>,
    /// The terminal events in the outbox.
    pub(crate) ends: Vec<End>,
    /// The deliveries that arrived.
    pub(crate) deliveries: Vec<Delivery>,
    /// The objects by the digest that their keys name.
    pub(crate) objects: BTreeMap<String, Object>,
    /// The digests that rows name.
    pub(crate) named: BTreeSet<String>,
    /// The rest of uploads: multipart uploads that were neither completed nor aborted, and objects without a digest.
    pub(crate) uploads: Vec<String>,
    /// The nodes that are not released.
    pub(crate) nodes: Vec<String>,
    /// The processes of trainers and replicas.
    pub(crate) processes: Vec<i32>,
}

/// The expectations on the facts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// The jobs that the API acknowledged, as it names them.
    pub(crate) acknowledged: Vec<String>,
    /// A job of the same training that was not disturbed.
    pub(crate) reference: String,
}
