//! `attune_manifest.json`: the provenance and contents of an adapter version. It is stored with the version, so that an
//! exported folder still states the data, base, parameters and code that it was made from.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    digest::Sha256,
    id::{AdapterVersionId, FileId, JobId, NodeId, RunId},
    run::{Blob, Gate, Plan},
    spec::{AdapterSpec, Quantization, TrainSpec},
};

/// The file's name in the folder.
pub const FILE: &str = "attune_manifest.json";

/// The value of [`Manifest::format`] that this release writes.
pub const FORMAT: u32 = 1;

/// The contents of `attune_manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format version, [`FORMAT`].
    pub format: u32,
    /// The adapter version's ID.
    pub id: AdapterVersionId,
    /// The name of the adapter's lineage.
    pub adapter: String,
    /// The version number within the lineage.
    pub version: i32,
    /// The name of the fine-tuned model: this adapter over its base.
    pub model: String,
    /// The creation time, RFC 3339.
    pub created_at: String,
    /// The base model.
    pub base_model: Base,
    /// The adapter's hyperparameters.
    pub spec: AdapterSpec,
    /// The origin of the version: a job or an import.
    pub origin: Origin,
    /// The release of the platform that wrote the version.
    pub code: Code,
    /// SHA-256 of the chat template that the rows were rendered with.
    pub chat_template_sha256: Option<Sha256>,
    /// SHA-256 over a line `<sha256>  <name>` per file, sorted by name, as `sha256sum` prints.
    pub digest: Sha256,
    /// The version's files, without this manifest.
    pub files: Vec<Blob>,
}

/// The base model of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The base model's name.
    pub name: String,
    /// The base model's digest.
    pub digest: Sha256,
    /// The quantization of the base that the adapter was trained over and is served over. Manifests of earlier releases
    /// state it only in [`Training::train`].
    #[serde(default)]
    pub quantization: Quantization,
}

/// The release that wrote a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// The release number of Attune.
    pub version: String,
    /// The version of the trainer contract, [`crate::run::CONTRACT_VERSION`].
    pub contract: u32,
}

/// The origin of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Origin {
    /// A training job.
    Job(Box<Training>),
    /// An import by a user.
    Import {
        /// The `attune_manifest.json` of the imported folder, if it had one. Its content is not verified.
        brought: Option<Value>,
    },
}

/// The training that produced a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// The job's ID.
    pub job: JobId,
    /// The job's last attempt.
    pub run: Attempt,
    /// The training rows.
    pub training_data: Data,
    /// The validation rows.
    pub validation_data: Option<Data>,
    /// The adapter version that the training started from.
    pub continued_from: Option<Before>,
    /// All training parameters, seed included.
    pub train: TrainSpec,
    /// The seed; a copy of `train.seed`.
    pub seed: u64,
    /// The time that the chat template received as the current time.
    pub template_now: String,
    /// The final metrics.
    pub metrics: Metrics,
    /// The report of the publish gate; `None`: the version is older than this field.
    #[serde(default)]
    pub gate: Option<Gate>,
}

/// A file of training or validation rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// The file's ID.
    pub file: FileId,
    /// SHA-256 of the file's content.
    pub sha256: Sha256,
    /// The number of rows that were trained on.
    pub rows: Option<u64>,
    /// The number of tokens in those rows.
    pub tokens: Option<u64>,
}

/// The adapter version that a training started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The version's ID.
    pub id: AdapterVersionId,
    /// The digest of its files.
    pub digest: Sha256,
}

/// The attempt (run) that finished the job: its node and its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The run's ID.
    pub id: RunId,
    /// The attempt's number within the job.
    pub number: i32,
    /// The node's ID.
    pub node: NodeId,
    /// The provider of the node.
    pub provider: String,
    /// The name of the provider's offer.
    pub offer: String,
    /// The micro-batch plan.
    pub plan: Plan,
    /// The measured peak memory in bytes.
    pub measured_peak: Option<i64>,
}

/// The final metrics of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The number of optimizer steps.
    pub steps: i64,
    /// The number of tokens with a loss, over all steps.
    pub trained_tokens: u64,
    /// The training loss of the last step.
    pub train_loss: Option<f64>,
    /// The mean token accuracy of the last step.
    pub train_mean_token_accuracy: Option<f64>,
    /// The loss of the last validation.
    pub valid_loss: Option<f64>,
    /// The mean token accuracy of the last validation.
    pub valid_mean_token_accuracy: Option<f64>,
}
