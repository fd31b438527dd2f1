//! The contract between the platform and a trainer: a run's files and plan, its reports, and the replies.
//!
//! A trainer knows one address and one token. It fetches its [`TaskSpec`](crate::run::task::TaskSpec) with
//! `GET /internal/run/spec`, requests upload URLs with `POST /internal/run/blobs`, and reports events with
//! `POST /internal/run/reports`. Objects are transferred through presigned URLs. `version` detects a trainer of another
//! release.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{metric::MetricName, processor::Processor};
use crate::{bytes::Bytes, digest::Sha256, export::Drift, placement::Placement, spec::Quantization};

/// Named metrics.
pub mod metric;
/// The process of a run at its provider.
pub mod process;
/// The processor of a run.
pub mod processor;
/// The tasks of a run.
pub mod task;
/// The names of spans of traces.
pub mod traceparent;

/// The contract version of this release.
pub const CONTRACT_VERSION: u32 = 4;

/// The exit status of a trainer that received SIGTERM, because its node ends soon. The job is not at fault.
pub const EXIT_INTERRUPTED: u8 = 75;

/// A file to fetch. Its content is checked against `sha256` after the download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// The file's name in the folder: `tokenizer.json`.
    pub name: String,
    /// SHA-256 of the content.
    pub sha256: Sha256,
    /// The file's length.
    pub bytes: Bytes,
    /// The presigned URL to `GET` the file from, valid for an hour.
    pub url: String,
}

/// A file that was uploaded to the object store under its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// The file's name in the folder: `adapter_model.safetensors`.
    pub name: String,
    /// SHA-256 of the content; also the object's key.
    pub sha256: Sha256,
    /// The file's length.
    pub bytes: Bytes,
}

/// The split of the effective batch into micro-batches, and the activations that are kept between forward and backward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The maximum number of rows in one forward pass.
    pub micro_batch_size: u32,
    /// The maximum number of tokens in one forward pass; a longer row is processed alone.
    pub micro_batch_tokens: u64,
    /// Gradient checkpointing: only each block's input is kept, and the rest is recomputed.
    pub checkpointing: bool,
    /// The number of CPU threads for the run.
    pub threads: u32,
    /// The peak memory that the plan predicts.
    pub predicted_peak: Bytes,
    /// The device and the number type. Plans that were stored before the field existed have the default.
    #[serde(default)]
    pub placement: Placement,
}

impl Plan {
    /// Describes the split of the batch: `micro_batch_size 4, gradient_checkpointing true`.
    #[must_use]
    pub fn split_text(&self) -> String {
        let Self { micro_batch_size, checkpointing, .. } = self;
        format!("micro_batch_size {micro_batch_size}, gradient_checkpointing {checkpointing}")
    }

    /// Returns the split of the batch as the data of an event.
    #[must_use]
    pub fn split_json(&self) -> Value {
        json!({ "micro_batch_size": self.micro_batch_size, "gradient_checkpointing": self.checkpointing })
    }
}

/// The report of one optimizer step: the values that the platform needs to keep a job's state, and named metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step's number, from 1.
    pub step: u64,
    /// The number of steps of the whole job.
    pub total_steps: u64,
    /// Mean cross-entropy over the step's trained tokens, in nats.
    pub train_loss: f64,
    /// The number of tokens in the step.
    pub tokens: u64,
    /// The number of tokens with a loss.
    pub trained_tokens: u64,
    /// The wall-clock time of the step.
    pub step_ms: u64,
    /// Peak resident memory so far.
    pub peak_memory: Bytes,
    /// The other metrics.
    #[serde(flatten, deserialize_with = "metric::known")]
    pub metrics: BTreeMap<MetricName, f64>,
}

/// The report of the publish gate: the published file over the base as it is served, compared with the adapter in
/// training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The quantization of the base that both were evaluated over.
    pub quantization: Quantization,
    /// The largest absolute difference of a logit.
    pub logit_difference: f64,
}

/// The severity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageLevel {
    /// Information only.
    Info,
    /// A condition to check: a spike of the loss, a rollback to an earlier state.
    Warn,
}

/// An event that a run reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent {
    /// The trainer is running and has its data.
    Started {
        /// The number of steps of the whole job.
        total_steps: u64,
        /// The number of tokens in one epoch of the training file.
        tokens_per_epoch: u64,
        /// The number of trained weights.
        trainable_weights: u64,
        /// The processor that it trains on; `None`: unknown, or the trainer is from before the field existed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        processor: Option<Processor>,
    },
    /// A message for the job's event list.
    Message {
        /// The message's severity.
        level: MessageLevel,
        /// The message's text.
        text: String,
        /// The same information as structured data; `null`: none.
        data: serde_json::Value,
    },
    /// The learning rate that a range test found. No training step precedes it.
    LearningRateFound {
        /// The learning rate that the job trains with.
        learning_rate: f64,
        /// The tested learning rates, and the smoothed loss at each.
        curve: Vec<(f64, f64)>,
        /// The reason for this choice, as a message.
        reason: String,
    },
    /// An optimizer step is complete.
    Step(StepMetrics),
    /// A pass over the validation file is complete.
    Evaluated {
        /// The number of steps completed before it.
        step: u64,
        /// Mean cross-entropy over the validation file's trained tokens, in nats.
        valid_loss: f64,
        /// The other metrics.
        #[serde(flatten, deserialize_with = "metric::known")]
        metrics: BTreeMap<MetricName, f64>,
    },
    /// A checkpoint's files are all in the object store.
    Checkpointed {
        /// The number of steps completed before it.
        step: u64,
        /// The checkpoint's files.
        files: Vec<Blob>,
        /// The training loss of the last step.
        train_loss: f64,
        /// The validation loss, if this step had a validation.
        valid_loss: Option<f64>,
    },
    /// The adapter's files are all in the object store. This is a last event.
    Published {
        /// The files of a PEFT folder.
        files: Vec<Blob>,
        /// SHA-256 of the chat template that the rows were rendered with.
        chat_template_sha256: Option<Sha256>,
        /// The number of tokens with a loss over the whole job, resumed runs included.
        trained_tokens: u64,
        /// The step of the adapter, if later steps were trained and dropped; `None`: the last step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        best_step: Option<u64>,
        /// Peak resident memory of the run.
        peak_memory: Bytes,
        /// The report of the publish gate.
        gate: Gate,
    },
    /// A part of an export's weights is written.
    Exporting {
        /// The bytes of weights written so far.
        done: Bytes,
        /// The bytes of all weights.
        total: Bytes,
    },
    /// The export's files are all in the object store. This is a last event.
    Exported {
        /// The files of the export.
        files: Vec<Blob>,
        /// The difference from the served adapter; `None`: the base is not a part of the export.
        drift: Option<Drift>,
        /// Peak resident memory.
        peak_memory: Bytes,
    },
    /// The run ran out of memory. The job's next run needs less, or has more. This is a last event.
    OutOfMemory {
        /// The error message, with the predicted, the used and the available memory.
        message: String,
        /// Peak resident memory of the run.
        peak_memory: Bytes,
    },
    /// The run cannot continue. This is a last event.
    Failed {
        /// A stable, machine-readable code: `non_finite_loss`.
        code: String,
        /// The error message.
        message: String,
        /// The request field at fault, if any.
        param: Option<String>,
        /// `true`: another attempt may succeed, because the disk was full or the object store was unavailable. The job
        /// is queued again.
        #[serde(default)]
        passing: bool,
    },
    /// The run stopped as instructed. This is a last event.
    Stopped {
        /// The number of completed steps.
        step: u64,
    },
}

impl RunEvent {
    /// Returns whether no other event follows this one.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(
            self,
            Self::Published { .. }
                | Self::Exported { .. }
                | Self::OutOfMemory { .. }
                | Self::Failed { .. }
                | Self::Stopped { .. }
        )
    }
}

/// One report of a trainer; without events it is a heartbeat only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run's lease from the spec. A stale one is answered with 409, and the trainer exits.
    pub run_lease: i64,
    /// The sequence number of the first event, counted from 0 within the run; a repeated report is not recorded twice.
    pub first_sequence: u64,
    /// The events, in order.
    pub events: Vec<RunEvent>,
}

/// The platform's instruction to a run or a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    /// Continue.
    Continue,
    /// Stop at the next step, report [`RunEvent::Stopped`], and exit.
    Stop,
}

/// The response to a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The instruction to the run.
    pub directive: Directive,
}

/// The request for upload URLs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobsWanted {
    /// The run's lease.
    pub run_lease: i64,
    /// The blobs to upload.
    pub blobs: Vec<Blob>,
}

/// The permission to upload one blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobGrant {
    /// SHA-256 of the blob.
    pub sha256: Sha256,
    /// The presigned URL to `PUT` the blob to; `None`: the blob is already stored.
    pub url: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_without_a_placement_is_read_with_the_default() {
        let stored = json!({"micro_batch_size": 4, "micro_batch_tokens": 1024, "checkpointing": false, "threads": 2,
            "predicted_peak": 400});
        let plan: Plan = serde_json::from_value(stored).unwrap();
        assert_eq!(plan.placement, Placement::default());
        assert_eq!(serde_json::to_value(&plan).unwrap()["placement"], json!({"device": "cpu", "compute": "f32"}));
    }

    #[test]
    fn metrics_are_next_to_the_fields_of_a_step() {
        let step = RunEvent::Step(StepMetrics {
            step: 3,
            total_steps: 75,
            train_loss: 0.81,
            tokens: 200,
            trained_tokens: 80,
            step_ms: 100,
            peak_memory: Bytes(380),
            metrics: BTreeMap::from([(MetricName::Epoch, 0.1), (MetricName::LearningRate, 2e-4)]),
        });
        let wire = json!({"type": "step", "step": 3, "total_steps": 75, "epoch": 0.1, "train_loss": 0.81,
            "learning_rate": 2e-4, "tokens": 200, "trained_tokens": 80, "step_ms": 100, "peak_memory": 380});
        assert_eq!(serde_json::to_value(&step).unwrap(), wire);
        assert_eq!(serde_json::from_value::<RunEvent>(wire).unwrap(), step);
    }

    #[test]
    fn a_start_without_a_processor_is_read() {
        let wire = json!({"type": "started", "total_steps": 3, "tokens_per_epoch": 90, "trainable_weights": 8});
        let started =
            |processor| RunEvent::Started { total_steps: 3, tokens_per_epoch: 90, trainable_weights: 8, processor };
        assert_eq!(serde_json::from_value::<RunEvent>(wire.clone()).unwrap(), started(None));
        assert_eq!(serde_json::to_value(started(None)).unwrap(), wire);
        let processor = Processor { name: "AMD EPYC".into(), threads: 2 };
        let written = serde_json::to_value(started(Some(processor))).unwrap();
        assert_eq!(written["processor"], json!({"name": "AMD EPYC", "threads": 2}));
    }

    #[test]
    fn metrics_are_next_to_the_fields_of_a_validation() {
        let metrics = BTreeMap::from([(MetricName::ValidMeanTokenAccuracy, 0.75)]);
        let evaluated = RunEvent::Evaluated { step: 2, valid_loss: 0.25, metrics };
        let wire = json!({"type": "evaluated", "step": 2, "valid_loss": 0.25, "valid_mean_token_accuracy": 0.75});
        assert_eq!(serde_json::to_value(&evaluated).unwrap(), wire);
        assert_eq!(serde_json::from_str::<RunEvent>(&wire.to_string()).unwrap(), evaluated);
    }
}
