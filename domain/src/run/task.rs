//! The tasks of a run: all that a worker on a node needs to perform one. The worker fetches its
//! [`TaskSpec`](crate::run::task::TaskSpec) with `GET /internal/run/spec`.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Sha256,
    id::{AdapterVersionId, CheckpointId, JobId, RunId},
    run::{Plan, RemoteFile, traceparent::Traceparent},
    spec::TrainSpec,
};

/// A task, named by `task` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum TaskSpec {
    /// Trains one adapter.
    Train(TrainTask),
}

impl TaskSpec {
    /// Returns the part that all tasks have.
    #[must_use]
    pub const fn run(&self) -> &RunHeader {
        match self {
            Self::Train(task) => &task.run,
        }
    }
}

/// The part of a task that does not depend on its kind: the run, and the terms of its reports.
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

/// The training of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainTask {
    /// The run, and the terms of its reports.
    #[serde(flatten)]
    pub run: RunHeader,
    /// The base model's files, a Hugging Face folder.
    pub base: Vec<RemoteFile>,
    /// The digest of the base's content; nodes use it as a cache key.
    pub base_digest: Sha256,
    /// The base's name, for `adapter_config.json`.
    pub base_name: String,
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
        assert_eq!(*task.run(), header);
        assert_eq!(serde_json::to_value(&task).unwrap(), wire);
        let TaskSpec::Train(task) = task;
        assert_eq!((task.train, task.plan), (train, plan));
    }
}
