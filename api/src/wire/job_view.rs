//! A job, its events and its checkpoints as users see them: OpenAI's objects field for field, and Attune's own beside.

use attune_domain::{id::OrganizationId, job::JobState, spec::Quantization};
use attune_store::{checkpoint::Checkpoint, job::Job, job_event::JobEventRow};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A fine-tuning job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobView {
    /// Its id.
    #[schema(example = "ftjob-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    /// The base model's name.
    pub model: String,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// Unix time, in seconds; `null` while it goes on.
    pub finished_at: Option<i64>,
    /// The tuned model's name, once there is one.
    pub fine_tuned_model: Option<String>,
    /// Whose it is.
    pub organization_id: String,
    /// Always empty: the adapter is at `/v1/adapters`.
    pub result_files: Vec<String>,
    /// `validating_files`, `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    #[schema(example = "running")]
    pub status: &'static str,
    /// The training file.
    pub training_file: String,
    /// The validation file.
    pub validation_file: Option<String>,
    /// The numbers in force.
    pub hyperparameters: HyperparametersView,
    /// How it trains, as it was asked for.
    pub method: MethodView,
    /// Tokens with a loss over all epochs, once it has succeeded.
    pub trained_tokens: Option<i64>,
    /// Why it failed.
    pub error: Option<JobErrorView>,
    /// Stands in the tuned model's name.
    pub user_provided_suffix: Option<String>,
    /// Seeds the adapter's first weights and the order of rows.
    pub seed: u64,
    /// Unix time, in seconds, as the steps so far foretell it; `null` while it does not run.
    pub estimated_finish: Option<i64>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub integrations: Vec<Value>,
    /// As it was given; `null` if nothing was.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// Optimiser steps that are done. Attune's own.
    pub steps_done: i64,
    /// Optimiser steps of the whole job, once known. Attune's own.
    pub total_steps: Option<i64>,
    /// How often a trainer was started for it. Attune's own.
    pub attempts: i32,
    /// The adapter's shape. Attune's own.
    pub adapter: AdapterSpecView,
    /// How the base is held while training. Attune's own.
    pub quantization: QuantizationView,
    /// The optimiser. Attune's own.
    pub trainer: TrainerView,
}

/// The numbers in force.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct HyperparametersView {
    pub n_epochs: u32,
    pub batch_size: u32,
    pub learning_rate_multiplier: f64,
}

/// How a job trains.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MethodView {
    /// Always `supervised`.
    pub r#type: &'static str,
    /// `{"hyperparameters": …}` as they came, `"auto"` included.
    #[schema(value_type = Object)]
    pub supervised: Value,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobErrorView {
    /// Stable, for programs.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// The request's field that is at fault, if one is.
    pub param: Option<String>,
}

/// The adapter's shape.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "PEFT's names")]
pub struct AdapterSpecView {
    pub rank: u32,
    pub lora_alpha: f64,
    pub target_modules: Vec<String>,
}

/// How the base is held while training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct QuantizationView {
    /// `nf4` or `none`.
    pub r#type: &'static str,
    /// The scales are quantised too.
    pub double_quant: bool,
}

/// The optimiser.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "as in the request")]
pub struct TrainerView {
    pub learning_rate: f64,
    #[schema(value_type = String)]
    pub schedule: attune_domain::spec::Schedule,
    pub warmup_ratio: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub max_steps: Option<u64>,
    pub max_length: u32,
    pub checkpoint_every_steps: u64,
    pub eval_every_steps: u64,
}

impl JobView {
    /// A job as it is at `now`.
    pub fn new(job: Job, organization: OrganizationId, now: DateTime<Utc>) -> Self {
        let (spec, estimated_finish) = (job.spec.clone(), estimated_finish(&job, now));
        let (kind, double_quant) = match spec.quantization {
            Quantization::Nf4 { double_quant } => ("nf4", double_quant),
            Quantization::Int8 => ("int8", false),
            Quantization::None => ("none", false),
        };
        Self {
            id: job.job_id.to_string(),
            object: "fine_tuning.job",
            model: job.base_model,
            created_at: job.created_at.timestamp(),
            finished_at: job.finished_at.map(|at| at.timestamp()),
            fine_tuned_model: job.fine_tuned_model,
            organization_id: organization.to_string(),
            result_files: Vec::new(),
            status: job.state.wire(),
            training_file: job.training_file_id.to_string(),
            validation_file: job.validation_file_id.map(|id| id.to_string()),
            hyperparameters: HyperparametersView {
                n_epochs: spec.n_epochs,
                batch_size: spec.effective_batch_size,
                learning_rate_multiplier: spec.learning_rate_multiplier,
            },
            method: MethodView { r#type: "supervised", supervised: job.requested },
            trained_tokens: job.trained_tokens,
            error: job.error.map(|e| JobErrorView { code: e.code, message: e.message, param: e.param }),
            user_provided_suffix: job.suffix,
            seed: spec.seed,
            estimated_finish,
            integrations: Vec::new(),
            metadata: Some(job.metadata).filter(|m| m.as_object().is_some_and(|pairs| !pairs.is_empty())),
            steps_done: job.steps_done,
            total_steps: job.total_steps,
            attempts: job.attempts,
            adapter: AdapterSpecView {
                rank: spec.adapter.rank,
                lora_alpha: spec.adapter.lora_alpha,
                target_modules: spec.adapter.target_modules,
            },
            quantization: QuantizationView { r#type: kind, double_quant },
            trainer: TrainerView {
                learning_rate: spec.learning_rate,
                schedule: spec.schedule,
                warmup_ratio: spec.warmup_ratio,
                weight_decay: spec.weight_decay,
                max_grad_norm: spec.max_grad_norm,
                max_steps: spec.max_steps,
                max_length: spec.max_length,
                checkpoint_every_steps: spec.checkpoint_every_steps,
                eval_every_steps: spec.eval_every_steps,
            },
        }
    }
}

/// The steps to come take as long as the mean of those that are done.
fn estimated_finish(job: &Job, now: DateTime<Utc>) -> Option<i64> {
    let (started, total) = (job.started_at?, job.total_steps?);
    if job.state != JobState::Running || job.steps_done <= 0 {
        return None;
    }
    let elapsed = (now - started).num_seconds().max(0) as f64;
    let rest = elapsed / job.steps_done as f64 * (total - job.steps_done).max(0) as f64;
    Some(now.timestamp() + rest.ceil() as i64)
}

/// Something that a job went through.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobEventView {
    /// Its id.
    pub id: String,
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// A sentence.
    pub message: String,
    /// `message` or `metrics`.
    pub r#type: String,
    /// The metrics of an event of type `metrics`.
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

/// A state from which a job's run can go on.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CheckpointView {
    /// Its id.
    pub id: String,
    /// Always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// A name for it. It cannot be chatted with yet.
    pub fine_tuned_model_checkpoint: String,
    /// Whose it is.
    pub fine_tuning_job_id: String,
    /// The optimiser step after which it was made.
    pub step_number: u64,
    /// What was measured there.
    pub metrics: CheckpointMetrics,
}

/// What was measured at a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct CheckpointMetrics {
    pub step: u64,
    pub train_loss: f64,
    pub valid_loss: Option<f64>,
    pub full_valid_loss: Option<f64>,
}

impl CheckpointView {
    /// A checkpoint of `job`.
    pub fn new(checkpoint: &Checkpoint, job: &Job, project: &str) -> Self {
        let suffix = job.suffix.as_deref().unwrap_or("");
        let step = checkpoint.step;
        Self {
            id: checkpoint.checkpoint_id.to_string(),
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_at.timestamp(),
            fine_tuned_model_checkpoint: format!("ft:{}:{project}:{suffix}:ckpt-step-{step}", job.base_model),
            fine_tuning_job_id: job.job_id.to_string(),
            step_number: step,
            metrics: CheckpointMetrics {
                step,
                train_loss: checkpoint.train_loss,
                valid_loss: checkpoint.valid_loss,
                full_valid_loss: checkpoint.valid_loss,
            },
        }
    }
}
