//! `attune_manifest.json`: where an adapter version comes from, and what it is made of. It travels with the version, so
//! that a folder that was taken home still says from which data, base, numbers and code it was made.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    id::{AdapterVersionId, FileId, JobId, NodeId, RunId},
    run::{Blob, Gate, Plan},
    spec::{AdapterSpec, Quantization, TrainSpec},
};

/// Its name in the folder.
pub const FILE: &str = "attune_manifest.json";

/// What this release writes into [`Manifest::format`].
pub const FORMAT: u32 = 1;

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Which version.
    pub id: AdapterVersionId,
    /// The name of its lineage.
    pub adapter: String,
    /// Its number in the lineage.
    pub version: i32,
    /// The name of the model that it makes of its base.
    pub model: String,
    /// RFC 3339.
    pub created_at: String,
    /// What it corrects.
    pub base_model: Base,
    /// Its shape.
    pub spec: AdapterSpec,
    /// How it came to be.
    pub origin: Origin,
    /// What made it: the release of the platform.
    pub code: Code,
    /// Of the chat template that its rows were rendered with.
    pub chat_template_sha256: Option<String>,
    /// SHA-256 over a line `<sha256>  <name>` per file, sorted by name, as `sha256sum` prints.
    pub digest: String,
    /// Its files; this one is not among them.
    pub files: Vec<Blob>,
}

/// The base that a version corrects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// The quantization of the base that the adapter was trained over, and is served over. Manifests of earlier releases
    /// have it in [`Training::train`] alone.
    #[serde(default)]
    pub quantization: Quantization,
}

/// The release that wrote a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// Of Attune.
    pub version: String,
    /// [`crate::run::CONTRACT_VERSION`].
    pub contract: u32,
}

/// How a version came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Origin {
    /// A job trained it.
    Job(Box<Training>),
    /// It was brought from outside.
    Import {
        /// `attune_manifest.json` of the folder that was brought, if it had one. Nobody vouches for it.
        brought: Option<Value>,
    },
}

/// The training that made a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// By which job.
    pub job: JobId,
    /// By which of its attempts, the last.
    pub run: Attempt,
    /// The rows that it learnt from.
    pub training_data: Data,
    /// The rows that it was judged by.
    pub validation_data: Option<Data>,
    /// The version that it began with.
    pub continued_from: Option<Before>,
    /// Every number in force, seed included.
    pub train: TrainSpec,
    /// The seed, once more by itself.
    pub seed: u64,
    /// What the chat template took for now, wherever it asked.
    pub template_now: String,
    /// What came of it.
    pub metrics: Metrics,
    /// What the publish gate found; `None`: the version is older than this report.
    #[serde(default)]
    pub gate: Option<Gate>,
}

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Which.
    pub file: FileId,
    /// Of its content.
    pub sha256: String,
    /// Rows that were trained on.
    pub rows: Option<u64>,
    /// Their tokens.
    pub tokens: Option<u64>,
}

/// The version that a training began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Which.
    pub id: AdapterVersionId,
    /// Of its files.
    pub digest: String,
}

/// Where and how the last attempt ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which run.
    pub id: RunId,
    /// Its number.
    pub number: i32,
    /// On which node.
    pub node: NodeId,
    /// Whose.
    pub provider: String,
    /// Which of its offers.
    pub offer: String,
    /// How the work was cut up.
    pub plan: Plan,
    /// Bytes that were taken at the most.
    pub measured_peak: Option<i64>,
}

/// What a training came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Optimiser steps.
    pub steps: i64,
    /// Tokens with a loss, over all of them.
    pub trained_tokens: u64,
    /// Of the last step.
    pub train_loss: Option<f64>,
    /// Of the last step.
    pub train_mean_token_accuracy: Option<f64>,
    /// Of the last validation.
    pub valid_loss: Option<f64>,
    /// Of the last validation.
    pub valid_mean_token_accuracy: Option<f64>,
}
