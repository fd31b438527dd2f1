//! The tasks of a run: all that a worker on a node needs to perform one. The worker fetches its
//! [`TaskSpec`](crate::run::task::TaskSpec) with `GET /internal/run/spec`.

use serde::{Deserialize, Serialize};

use crate::{
    bytes::Bytes,
    digest::Sha256,
    export::ExportSpec,
    hub_origin::HubOrigin,
    id::{AdapterVersionId, CheckpointId, ExportId, JobId, RunId},
    run::{Plan, RemoteFile, traceparent::Traceparent},
    spec::{Quantization, TrainSpec},
};

/// A task, named by `task` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a process has one task, and the larger kind is the usual one")]
pub enum TaskSpec {
    /// Trains one adapter.
    Train(TrainTask),
    /// Writes an export of an adapter.
    Export(ExportTask),
}

/// The terms of a task's reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportTerms {
    /// [`CONTRACT_VERSION`](crate::run::CONTRACT_VERSION).
    pub version: u32,
    /// The lease, which every report carries and which fences the report's writes.
    pub run_lease: i64,
    /// The maximum number of seconds between reports.
    pub heartbeat_seconds: u64,
    /// The span that created the task; `None`: its request was not traced.
    pub traceparent: Option<Traceparent>,
}

impl TaskSpec {
    /// Returns the terms of the task's reports.
    #[must_use]
    pub const fn terms(&self) -> ReportTerms {
        match self {
            Self::Train(TrainTask { run, .. }) => ReportTerms {
                version: run.version,
                run_lease: run.run_lease,
                heartbeat_seconds: run.heartbeat_seconds,
                traceparent: run.traceparent,
            },
            Self::Export(task) => ReportTerms {
                version: task.version,
                run_lease: task.run_lease,
                heartbeat_seconds: task.heartbeat_seconds,
                traceparent: None,
            },
        }
    }

    /// Returns the ID of the object that the task is for.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Train(task) => task.run.job_id.to_string(),
            Self::Export(task) => task.export_id.to_string(),
        }
    }
}

/// The run of a training, and the terms of its reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHeader {
    /// [`CONTRACT_VERSION`](crate::run::CONTRACT_VERSION).
    pub version: u32,
    /// The job's ID.
    pub job_id: JobId,
    /// The run's ID: this attempt at the job.
    pub run_id: RunId,
    /// The run's lease, which every report carries and which fences the report's writes.
    pub run_lease: i64,
    /// The maximum number of seconds between reports.
    pub heartbeat_seconds: u64,
    /// The span that created the job; `None`: its request was not traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Traceparent>,
}

/// The checkpoint that a run resumes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The checkpoint's ID.
    pub checkpoint_id: CheckpointId,
    /// The number of completed optimizer steps.
    pub step: u64,
    /// The checkpoint's files.
    pub files: Vec<RemoteFile>,
}

/// The adapter version whose factors the training starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinueFrom {
    /// The adapter version's ID.
    pub adapter_version_id: AdapterVersionId,
    /// `adapter_config.json` and `adapter_model.safetensors`.
    pub files: Vec<RemoteFile>,
}

/// The base model of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskBase {
    /// The files, a Hugging Face folder.
    #[serde(rename = "base")]
    pub files: Vec<RemoteFile>,
    /// The digest of the content; nodes use it as a cache key.
    #[serde(rename = "base_digest")]
    pub digest: Sha256,
    /// The name, for `adapter_config.json` and the model card.
    #[serde(rename = "base_name")]
    pub name: String,
    /// The origin in a hub, for the model card.
    #[serde(rename = "base_origin", default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<HubOrigin>,
    /// The licence, for the model card and for GGUF's metadata; `None`: unknown.
    #[serde(rename = "base_license", default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// The training of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainTask {
    /// The run, and the terms of its reports.
    #[serde(flatten)]
    pub run: RunHeader,
    /// The base model.
    #[serde(flatten)]
    pub base: TaskBase,
    /// The training rows, JSONL.
    pub training_file: RemoteFile,
    /// The validation rows, JSONL.
    pub validation_file: Option<RemoteFile>,
    /// The training parameters.
    pub train: TrainSpec,
    /// The time that chat templates receive as the current time, in seconds since 1970: when the job was created. It is
    /// the same for the job's validation and for each attempt.
    pub template_now: i64,
    /// The micro-batch plan.
    pub plan: Plan,
    /// `true` if the largest micro-batch is always tried before the first step, since it may not fit: an earlier run
    /// ran out of memory, or the plan of a new job leaves little memory free.
    #[serde(default)]
    pub always_warm_up: bool,
    /// The adapter that the training starts from; `None`: a new one.
    pub continue_from: Option<ContinueFrom>,
    /// The checkpoint to resume from; `None`: the run starts at the first step.
    pub resume: Option<Resume>,
}

/// The export of one adapter: a task without steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportTask {
    /// [`CONTRACT_VERSION`](crate::run::CONTRACT_VERSION).
    pub version: u32,
    /// The export's ID.
    pub export_id: ExportId,
    /// The lease of this attempt, which every report carries.
    pub run_lease: i64,
    /// The maximum number of seconds between reports.
    pub heartbeat_seconds: u64,
    /// The base model.
    #[serde(flatten)]
    pub base: TaskBase,
    /// The name of the exported model.
    pub model: String,
    /// The adapter's files, a PEFT folder.
    pub adapter: Vec<RemoteFile>,
    /// The text of the adapter version's manifest; `None`: it has none, or a checkpoint is exported.
    pub manifest: Option<String>,
    /// The quantization of the base that the adapter was trained over.
    pub quantization: Quantization,
    /// The form of the export, and its options.
    pub spec: ExportSpec,
    /// The rows that the importance matrix is computed from; `None`: the export has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<RemoteFile>,
    /// The number of CPU threads.
    pub threads: u32,
    /// The predicted peak memory.
    pub predicted_peak: Bytes,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::spec::Requested;

    #[test]
    fn a_task_is_one_object_with_its_kind() {
        let (job, run) = (JobId::new(Uuid::from_u128(1)), RunId::new(Uuid::from_u128(2)));
        let train = TrainSpec::check(&Requested::default(), 360, 128).unwrap();
        let plan: Plan = serde_json::from_value(json!({"micro_batch_size": 2, "micro_batch_tokens": 1024,
            "checkpointing": true, "threads": 1, "predicted_peak": 64}))
        .unwrap();
        let file = json!({"name": "train.jsonl", "sha256": "a".repeat(64), "bytes": 7, "url": "http://objects/a"});
        let wire = json!({"task": "train", "version": 3, "job_id": job, "run_id": run, "run_lease": 7,
            "heartbeat_seconds": 10, "base": [file], "base_digest": "d".repeat(64), "base_name": "tiny",
            "training_file": file, "validation_file": null, "train": train, "template_now": 0, "plan": plan,
            "always_warm_up": false, "continue_from": null, "resume": null});
        let task: TaskSpec = serde_json::from_str(&wire.to_string()).unwrap();
        let header =
            RunHeader { version: 3, job_id: job, run_id: run, run_lease: 7, heartbeat_seconds: 10, traceparent: None };
        assert_eq!((task.terms().run_lease, task.terms().heartbeat_seconds), (7, 10));
        assert_eq!(task.subject(), job.to_string());
        assert_eq!(serde_json::to_value(&task).unwrap(), wire);
        let TaskSpec::Train(task) = task else { panic!("a training was expected") };
        assert_eq!((task.run, task.train, task.plan), (header, train, plan));
    }

    #[test]
    fn an_export_is_a_task_without_a_run() {
        let id = ExportId::new(Uuid::from_u128(3));
        let spec = json!({"format": "gguf", "dtype": "q8_0", "base_weights": "original", "shard_bytes": 1048576});
        let wire = json!({"task": "export", "version": 4, "export_id": id, "run_lease": 2, "heartbeat_seconds": 10,
            "base": [], "base_digest": "d".repeat(64), "base_name": "tiny", "model": "ft:tiny:default:house:1",
            "adapter": [], "manifest": null, "quantization": {"type": "int8"}, "spec": spec, "threads": 2,
            "predicted_peak": 9});
        let task: TaskSpec = serde_json::from_str(&wire.to_string()).unwrap();
        assert_eq!((task.terms().run_lease, task.subject()), (2, id.to_string()));
        assert_eq!(serde_json::to_value(&task).unwrap(), wire);
    }
}
