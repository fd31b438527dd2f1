//! Jobs, their events and their checkpoints as the API returns them: OpenAI's objects field by field, with Attune's
//! extensions.

use attune_domain::{
    id::OrganizationId,
    job::{JobState, PauseReason},
    spec::{AdapterSpec, HyperparametersSpec, Quantization},
    template_kwargs::TemplateKwargs,
};
use attune_store::{
    adapters::model_name,
    jobs::{
        checkpoint::{Accuracies, Checkpoint},
        job::{Job, JobError},
        job_event::JobEventRow,
    },
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    method::MethodView,
    money::{ComputeView, JobUsage, usd},
    trainer::TrainerView,
};

/// A fine-tuning job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobView {
    /// The job's ID.
    #[schema(example = "ftjob-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `fine_tuning.job`.
    pub object: &'static str,
    /// The base model's name.
    pub model: String,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The time at which the job ended, in Unix seconds; `null` until then.
    pub finished_at: Option<i64>,
    /// The name of the fine-tuned model, once it exists.
    pub fine_tuned_model: Option<String>,
    /// The ID of the organization that owns the job.
    pub organization_id: String,
    /// The ID of a CSV file with the metrics of each step, once the job has succeeded.
    pub result_files: Vec<String>,
    /// The status: `validating_files`, `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.
    #[schema(example = "running")]
    pub status: &'static str,
    /// The ID of the training file.
    pub training_file: String,
    /// The ID of the validation file.
    pub validation_file: Option<String>,
    /// The hyperparameters in use.
    pub hyperparameters: HyperparametersSpec,
    /// The training method.
    pub method: MethodView,
    /// The number of tokens with a loss over all epochs, once the job has succeeded.
    pub trained_tokens: Option<i64>,
    /// The error, if the job failed.
    pub error: Option<JobErrorView>,
    /// The suffix in the fine-tuned model's name.
    pub user_provided_suffix: Option<String>,
    /// The seed of the adapter's initial weights and of the order of rows.
    pub seed: u64,
    /// The estimated time of the end, in Unix seconds, from the duration of the steps so far; `null` unless the job is
    /// running.
    pub estimated_finish: Option<i64>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub integrations: Vec<Value>,
    /// The metadata, as in the request; `null` if there is none.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// The reason why the job is paused or about to be: `asked` (by a user), `price_cap` (its own), `budget` (the
    /// project's), or `preempted` (another job needs the machine, and this one is then queued again). Attune extension.
    pub pause_reason: Option<&'static str>,
    /// The reason why a queued job has not started yet. Attune extension.
    pub waiting_reason: Option<String>,
    /// The position of a queued job among all waiting jobs, from 1; `null` until it is planned. Attune extension.
    pub position: Option<i32>,
    /// The estimated time of the start of a queued job, in Unix seconds; `null` if it cannot be estimated. Attune
    /// extension.
    pub estimated_start: Option<i64>,
    /// The number of completed optimizer steps. Attune extension.
    pub steps_done: i64,
    /// The number of optimizer steps of the whole job, once known. Attune extension.
    pub total_steps: Option<i64>,
    /// The number of times that a trainer was started for the job. Attune extension.
    pub attempts: i32,
    /// The adapter's LoRA configuration. Attune extension.
    pub adapter: AdapterSpec,
    /// The quantization of the base model while training. Attune extension.
    pub quantization: QuantizationView,
    /// The trainer's settings. Attune extension.
    pub trainer: TrainerView,
    /// The ID of the adapter that the job starts from; `null` for a new one. Attune extension.
    #[schema(example = "adapter_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub continue_from: Option<String>,
    /// Variables of the base model's chat template for each row; `null` if there are none. Attune extension.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<TemplateKwargs>,
    /// Limits on the job's cost, and its place in the queue. Attune extension.
    pub compute: ComputeView,
    /// The usage so far, without a run that is in progress. Attune extension.
    pub usage: JobUsage,
}

/// The reason why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobErrorView {
    /// A stable, machine-readable code.
    pub code: String,
    /// A human-readable message.
    pub message: String,
    /// The field of the request that caused the error, if there is one.
    pub param: Option<String>,
}

impl From<JobError> for JobErrorView {
    fn from(error: JobError) -> Self {
        let JobError { code, message, param } = error;
        Self { code, message, param }
    }
}

/// The quantization of the base model while training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct QuantizationView {
    /// The type: `nf4`, `int8` or `none`.
    pub r#type: &'static str,
    /// `true` if the scales are quantized too.
    pub double_quant: bool,
}

impl From<Quantization> for QuantizationView {
    fn from(quantization: Quantization) -> Self {
        let (kind, double_quant) = match quantization {
            Quantization::Nf4 { double_quant } => ("nf4", double_quant),
            Quantization::Int8 => ("int8", false),
            Quantization::None => ("none", false),
        };
        Self { r#type: kind, double_quant }
    }
}

impl JobView {
    /// Creates the view of a job at `now`.
    pub fn new(job: Job, organization: OrganizationId, now: DateTime<Utc>) -> Self {
        let (spec, estimated_finish) = (job.spec.clone(), estimated_finish(&job, now));
        let compute = ComputeView::new(&job);
        Self {
            id: job.job_id.to_string(),
            object: "fine_tuning.job",
            model: job.base_model,
            created_at: job.created_at.timestamp(),
            finished_at: job.finished_at.map(|at| at.timestamp()),
            fine_tuned_model: job.fine_tuned_model,
            organization_id: organization.to_string(),
            result_files: job.result_file_id.iter().map(ToString::to_string).collect(),
            status: job.state.wire(),
            training_file: job.training_file_id.to_string(),
            validation_file: job.validation_file_id.map(|id| id.to_string()),
            hyperparameters: spec.hyperparameters,
            method: MethodView::from(&spec),
            trained_tokens: job.trained_tokens,
            error: job.error.map(JobErrorView::from),
            user_provided_suffix: job.suffix,
            seed: spec.seed,
            estimated_finish,
            integrations: Vec::new(),
            metadata: Some(job.metadata).filter(|m| m.as_object().is_some_and(|pairs| !pairs.is_empty())),
            pause_reason: job.pause_reason.map(PauseReason::name),
            waiting_reason: job.waiting_reason,
            position: job.queue_position,
            estimated_start: job.estimated_start.map(|at| at.timestamp()),
            steps_done: job.steps_done,
            total_steps: job.total_steps,
            attempts: job.attempts,
            trainer: TrainerView::from(&spec),
            adapter: spec.adapter,
            quantization: QuantizationView::from(spec.quantization),
            continue_from: job.continue_from.map(|id| id.to_string()),
            chat_template_kwargs: Some(spec.chat_template_kwargs).filter(|kwargs| !kwargs.is_empty()),
            compute,
            usage: JobUsage {
                trained_tokens: job.charged_tokens,
                node_seconds: job.node_ms as f64 / 1000.0,
                cost_usd: usd(job.micro_usd),
            },
        }
    }
}

/// Estimates the end, assuming that the remaining steps take the mean time of this run's steps.
fn estimated_finish(job: &Job, now: DateTime<Utc>) -> Option<i64> {
    let (total, step_ms) = (job.total_steps?, job.mean_step_ms?);
    if job.state != JobState::Running {
        return None;
    }
    let rest_ms = step_ms * (total - job.steps_done).max(0) as f64;
    Some(now.timestamp() + (rest_ms / 1000.0).ceil() as i64)
}

/// An event of a job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobEventView {
    /// The event's ID.
    pub id: String,
    /// The object type, always `fine_tuning.job.event`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The level: `info`, `warn` or `error`.
    pub level: String,
    /// A human-readable message.
    pub message: String,
    /// The type: `message` or `metrics`.
    pub r#type: String,
    /// The metrics of an event of type `metrics`. For a `message`, machine-readable details, if there are any, such as
    /// the curve of a learning-rate range test.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Value>,
}

impl From<JobEventRow> for JobEventView {
    fn from(row: JobEventRow) -> Self {
        Self {
            id: row.job_event_id.to_string(),
            object: "fine_tuning.job.event",
            created_at: row.created_at.timestamp(),
            level: row.level,
            message: row.message,
            r#type: row.kind,
            data: row.data,
        }
    }
}

/// A checkpoint, from which a job's run can resume.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CheckpointView {
    /// The checkpoint's ID.
    pub id: String,
    /// The object type, always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The checkpoint's model name, for chat and text completions: `ft:…:ckpt-step-N`.
    pub fine_tuned_model_checkpoint: String,
    /// The ID of the job.
    pub fine_tuning_job_id: String,
    /// The optimizer step after which the checkpoint was written.
    pub step_number: u64,
    /// The metrics at that step.
    pub metrics: CheckpointMetrics,
}

/// The metrics of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct CheckpointMetrics {
    pub step: u64,
    pub train_loss: f64,
    pub train_mean_token_accuracy: Option<f64>,
    pub valid_loss: Option<f64>,
    pub valid_mean_token_accuracy: Option<f64>,
    pub full_valid_loss: Option<f64>,
    pub full_valid_mean_token_accuracy: Option<f64>,
}

impl CheckpointView {
    /// Creates the view of a checkpoint of `job`. Each validation reads the whole file, so OpenAI's `valid_*` and
    /// `full_valid_*` metrics are equal.
    pub fn new((checkpoint, accuracies): (&Checkpoint, Accuracies), job: &Job, project: &str) -> Self {
        let of_job = || model_name::of_job(&job.base_model, project, job.suffix.as_deref(), job.job_id);
        let model = job.fine_tuned_model.clone().unwrap_or_else(of_job);
        let step = checkpoint.step;
        Self {
            id: checkpoint.checkpoint_id.to_string(),
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_at.timestamp(),
            fine_tuned_model_checkpoint: model_name::of_checkpoint(&model, step),
            fine_tuning_job_id: job.job_id.to_string(),
            step_number: step,
            metrics: CheckpointMetrics {
                step,
                train_loss: checkpoint.train_loss,
                train_mean_token_accuracy: accuracies.train,
                valid_loss: checkpoint.valid_loss,
                valid_mean_token_accuracy: accuracies.validation,
                full_valid_loss: checkpoint.valid_loss,
                full_valid_mean_token_accuracy: accuracies.validation,
            },
        }
    }
}
