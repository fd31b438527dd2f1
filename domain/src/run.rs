//! The contract between the platform and a trainer: what a run gets, what it says, what it is told.
//!
//! A trainer knows one address and one token. It fetches its [`RunSpec`] with `GET /internal/run/spec`, asks where to
//! put blobs with `POST /internal/run/blobs`, and tells what happens with `POST /internal/run/reports`. Objects move
//! through presigned URLs. `version` guards against a trainer of another release.

use serde::{Deserialize, Serialize};

use crate::{
    bytes::Bytes,
    id::{AdapterVersionId, CheckpointId, JobId, RunId},
    spec::{Quantization, TrainSpec},
};

/// What this release speaks.
pub const CONTRACT_VERSION: u32 = 3;

/// A file to fetch. It is checked against `sha256` when it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Its name in the folder: `tokenizer.json`.
    pub name: String,
    /// Lower-case hex.
    pub sha256: String,
    /// Its length.
    pub bytes: Bytes,
    /// Where to `GET` it; presigned, good for an hour.
    pub url: String,
}

/// A file that was put into the object store under its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its name in the folder: `adapter_model.safetensors`.
    pub name: String,
    /// Lower-case hex; also its key.
    pub sha256: String,
    /// Its length.
    pub bytes: Bytes,
}

/// How the effective batch is cut up, and what is kept between forward and backward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Rows that go through the decoder at once, at most.
    pub micro_batch_size: u32,
    /// Tokens that do, at most; a longer row goes alone.
    pub micro_batch_tokens: u64,
    /// Only each block's input is kept; the rest is computed again.
    pub checkpointing: bool,
    /// Processor threads for the run.
    pub threads: u32,
    /// Peak memory that the plan predicts.
    pub predicted_peak: Bytes,
}

/// Where a run goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Which checkpoint.
    pub checkpoint_id: CheckpointId,
    /// Optimiser steps that are done.
    pub step: u64,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

/// An adapter whose factors are the first ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinueFrom {
    /// Which adapter.
    pub adapter_version_id: AdapterVersionId,
    /// `adapter_config.json` and `adapter_model.safetensors`.
    pub files: Vec<RemoteFile>,
}

/// Everything a trainer needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// The job that this is an attempt at.
    pub job_id: JobId,
    /// This attempt.
    pub run_id: RunId,
    /// The fence: every report carries it.
    pub run_lease: i64,
    /// Seconds between reports at the most.
    pub heartbeat_seconds: u64,
    /// Base model, a Hugging Face folder.
    pub base: Vec<RemoteFile>,
    /// Names the base's content; nodes cache by it.
    pub base_digest: String,
    /// The base's name, for `adapter_config.json`.
    pub base_name: String,
    /// Training rows, JSONL.
    pub training_file: RemoteFile,
    /// Validation rows, JSONL.
    pub validation_file: Option<RemoteFile>,
    /// What to train.
    pub train: TrainSpec,
    /// What chat templates take for now, in seconds since 1970: when the job was made. The same for its check and for each
    /// attempt.
    pub template_now: i64,
    /// How.
    pub plan: Plan,
    /// The adapter that the training begins with; `None`: a new one.
    pub continue_from: Option<ContinueFrom>,
    /// From where; `None`: from the start.
    pub resume: Option<Resume>,
}

/// One optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Counted from 1.
    pub step: u64,
    /// Steps of the whole job.
    pub total_steps: u64,
    /// Passes done, with fraction.
    pub epoch: f64,
    /// Mean cross-entropy over the step's trained tokens, in nats.
    pub train_loss: f64,
    /// Share of trained tokens whose most likely token was right.
    pub train_mean_token_accuracy: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The rate that the step used.
    pub learning_rate: f64,
    /// All tokens of the step.
    pub tokens: u64,
    /// Those with a loss.
    pub trained_tokens: u64,
    /// Wall time of the step.
    pub step_ms: u64,
    /// Peak resident memory so far.
    pub peak_memory: Bytes,
}

/// The report of the publish gate: the published file over the base as it is served, beside the adapter in training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The quantization of the base that both were asked over.
    pub quantization: Quantization,
    /// The largest absolute difference of a logit.
    pub logit_difference: f64,
}

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageLevel {
    /// For the record.
    Info,
    /// Something to look at: a spike of the loss, a state that was gone back to.
    Warn,
}

/// What a run has to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent {
    /// The trainer is up and has its data.
    Started {
        /// Steps of the whole job.
        total_steps: u64,
        /// Tokens of one pass over the training file.
        tokens_per_epoch: u64,
        /// Weights that are trained.
        trainable_weights: u64,
    },
    /// A sentence for the job's event list.
    Message {
        /// How much it matters.
        level: MessageLevel,
        /// The sentence.
        text: String,
        /// The same for programs; `null`: nothing to add.
        data: serde_json::Value,
    },
    /// The learning rate that a range test found. Nothing was trained before it.
    LearningRateFound {
        /// What the job trains with.
        learning_rate: f64,
        /// Rates that were tried and the loss at each, smoothed.
        curve: Vec<(f64, f64)>,
        /// Why this one: a sentence.
        reason: String,
    },
    /// An optimiser step is done.
    Step(StepMetrics),
    /// A pass over the validation file is done.
    Evaluated {
        /// After which step.
        step: u64,
        /// Mean cross-entropy over its trained tokens, in nats.
        valid_loss: f64,
        /// Share of trained tokens whose most likely token was right.
        valid_mean_token_accuracy: f64,
    },
    /// A checkpoint's files are all in the object store.
    Checkpointed {
        /// After which step.
        step: u64,
        /// Its files.
        files: Vec<Blob>,
        /// The last step's loss.
        train_loss: f64,
        /// The last validation's, if there was one at this step.
        valid_loss: Option<f64>,
    },
    /// The adapter's files are all in the object store: the end.
    Published {
        /// A PEFT folder.
        files: Vec<Blob>,
        /// SHA-256 of the chat template that the rows were rendered with.
        chat_template_sha256: Option<String>,
        /// Tokens with a loss over the whole job, resumed parts included.
        trained_tokens: u64,
        /// Peak resident memory of the run.
        peak_memory: Bytes,
        /// What the publish gate found.
        gate: Gate,
    },
    /// It cannot go on: the end.
    Failed {
        /// Stable, for programs: `non_finite_loss`.
        code: String,
        /// A sentence.
        message: String,
        /// The request's field that is at fault, if one is.
        param: Option<String>,
        /// Another attempt may do better: the disk was full, or the object store away. The job is queued again.
        #[serde(default)]
        passing: bool,
    },
    /// A stop was obeyed: the end.
    Stopped {
        /// After which step.
        step: u64,
    },
}

impl RunEvent {
    /// Nothing comes after it.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Published { .. } | Self::Failed { .. } | Self::Stopped { .. })
    }
}

/// One post of a trainer; without events it is a bare heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run's lease, as the spec gave it. A stale one is answered with 409, and the trainer leaves.
    pub run_lease: i64,
    /// The number of the first event, counted from 0 within the run; a repeated post is not taken twice.
    pub first_sequence: u64,
    /// In order.
    pub events: Vec<RunEvent>,
}

/// What a run is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    /// Go on.
    Continue,
    /// Stop at the next step, say [`RunEvent::Stopped`], leave.
    Stop,
}

/// The answer to a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// What to do.
    pub directive: Directive,
}

/// Asks where to put blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobsWanted {
    /// The run's lease.
    pub run_lease: i64,
    /// What is to be put.
    pub blobs: Vec<Blob>,
}

/// Where to put one blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobGrant {
    /// Which.
    pub sha256: String,
    /// Where to `PUT` it; `None`: it is there already.
    pub url: Option<String>,
}
