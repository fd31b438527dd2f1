//! A job, its events and its checkpoints as users see them: OpenAI's objects field for field, and Attune's own beside.

use attune_domain::{
    id::OrganizationId,
    job::{JobState, PauseReason},
    spec::{AdapterSpec, Method, Optimizer, OverLength, Quantization, Schedule, TrainSpec},
    template_kwargs::TemplateKwargs,
};
use attune_store::{
    adapters::model_name,
    jobs::{
        checkpoint::{Accuracies, Checkpoint},
        job::Job,
        job_event::JobEventRow,
    },
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    auto::{AutoBool, AutoInt},
    money::{ComputeView, JobUsage, usd},
};

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
    /// The id of a file with its metrics step by step (CSV), once it has succeeded.
    pub result_files: Vec<String>,
    /// `validating_files`, `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.
    #[schema(example = "running")]
    pub status: &'static str,
    /// The training file.
    pub training_file: String,
    /// The validation file.
    pub validation_file: Option<String>,
    /// The numbers in force.
    pub hyperparameters: HyperparametersView,
    /// How it trains.
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
    /// Why it waits, or is about to: `asked`, `price_cap` or `budget`. Attune's own.
    pub pause_reason: Option<&'static str>,
    /// Why it is not placed yet, while it is queued. Attune's own.
    pub waiting_reason: Option<String>,
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
    /// How it learns. Attune's own.
    pub trainer: TrainerView,
    /// The adapter that it begins with; `null`: a new one. Attune's own.
    #[schema(example = "adapter_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub continue_from: Option<String>,
    /// Variables that the base's chat template gets with each row; `null`: none. Attune's own.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<TemplateKwargs>,
    /// What it may take. Attune's own.
    pub compute: ComputeView,
    /// What it has used so far, a run that is at work left out. Attune's own.
    pub usage: JobUsage,
}

/// The numbers in force.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct HyperparametersView {
    pub n_epochs: u32,
    pub batch_size: u32,
    pub learning_rate_multiplier: f64,
}

impl From<&TrainSpec> for HyperparametersView {
    fn from(spec: &TrainSpec) -> Self {
        Self {
            n_epochs: spec.n_epochs,
            batch_size: spec.effective_batch_size,
            learning_rate_multiplier: spec.learning_rate_multiplier,
        }
    }
}

/// How a job trains.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MethodView {
    /// `supervised` or `continued_pretraining`.
    #[schema(example = "supervised")]
    pub r#type: &'static str,
    /// The numbers in force, where OpenAI's clients look for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised: Option<MethodSettingsView>,
    /// The same, of the other type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continued_pretraining: Option<MethodSettingsView>,
}

/// Settings of a method.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MethodSettingsView {
    /// The numbers in force: what was `"auto"` is chosen.
    pub hyperparameters: HyperparametersView,
}

impl From<&TrainSpec> for MethodView {
    fn from(spec: &TrainSpec) -> Self {
        let settings = MethodSettingsView { hyperparameters: HyperparametersView::from(spec) };
        match spec.method {
            Method::Supervised => {
                Self { r#type: "supervised", supervised: Some(settings), continued_pretraining: None }
            }
            Method::ContinuedPretraining => {
                Self { r#type: "continued_pretraining", supervised: None, continued_pretraining: Some(settings) }
            }
        }
    }
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
    pub lora_dropout: f64,
    pub use_rslora: bool,
    pub use_dora: bool,
}

impl From<AdapterSpec> for AdapterSpecView {
    fn from(spec: AdapterSpec) -> Self {
        let AdapterSpec { rank, lora_alpha, target_modules, lora_dropout, use_rslora, use_dora } = spec;
        Self { rank, lora_alpha, target_modules, lora_dropout, use_rslora, use_dora }
    }
}

/// How the base is held while training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct QuantizationView {
    /// `nf4`, `int8` or `none`.
    pub r#type: &'static str,
    /// The scales are quantised too.
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

/// How it learns.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "as in the request")]
pub struct TrainerView {
    /// The number in force: the default until a range test has found it, if one was asked for.
    pub learning_rate: f64,
    /// `"auto"` was asked for.
    pub learning_rate_auto: bool,
    #[schema(value_type = String)]
    pub schedule: Schedule,
    pub num_cycles: u32,
    pub warmup_ratio: f64,
    #[schema(value_type = String)]
    pub optimizer: Optimizer,
    pub weight_decay: f64,
    pub loraplus_lr_ratio: f64,
    pub max_grad_norm: f64,
    pub neftune_noise_alpha: f64,
    pub max_steps: Option<u64>,
    pub max_length: u32,
    #[schema(value_type = String)]
    pub over_length: OverLength,
    pub train_on_prompt: bool,
    /// What the plan chose is in the job's events.
    pub micro_batch_size: AutoInt,
    /// What the plan chose is in the job's events.
    pub gradient_checkpointing: AutoBool,
    pub checkpoint_every_steps: u64,
    pub eval_every_steps: u64,
    pub early_stopping_patience: u64,
    pub early_stopping_threshold: f64,
}

impl From<&TrainSpec> for TrainerView {
    fn from(spec: &TrainSpec) -> Self {
        Self {
            learning_rate: spec.learning_rate,
            learning_rate_auto: spec.learning_rate_auto,
            schedule: spec.schedule,
            num_cycles: spec.num_cycles,
            warmup_ratio: spec.warmup_ratio,
            optimizer: spec.optimizer,
            weight_decay: spec.weight_decay,
            loraplus_lr_ratio: spec.loraplus_lr_ratio,
            max_grad_norm: spec.max_grad_norm,
            neftune_noise_alpha: spec.neftune_noise_alpha,
            max_steps: spec.max_steps,
            max_length: spec.max_length,
            over_length: spec.over_length,
            train_on_prompt: spec.train_on_prompt || spec.method == Method::ContinuedPretraining,
            micro_batch_size: AutoInt(spec.micro_batch_size.map(i64::from)),
            gradient_checkpointing: AutoBool(spec.gradient_checkpointing),
            checkpoint_every_steps: spec.checkpoint_every_steps,
            eval_every_steps: spec.eval_every_steps,
            early_stopping_patience: spec.early_stopping_patience,
            early_stopping_threshold: spec.early_stopping_threshold,
        }
    }
}

impl JobView {
    /// A job as it is at `now`.
    pub fn new(job: Job, organization: OrganizationId, now: DateTime<Utc>) -> Self {
        let (spec, estimated_finish) = (job.spec.clone(), estimated_finish(&job, now));
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
            hyperparameters: HyperparametersView::from(&spec),
            method: MethodView::from(&spec),
            trained_tokens: job.trained_tokens,
            error: job.error.map(|e| JobErrorView { code: e.code, message: e.message, param: e.param }),
            user_provided_suffix: job.suffix,
            seed: spec.seed,
            estimated_finish,
            integrations: Vec::new(),
            metadata: Some(job.metadata).filter(|m| m.as_object().is_some_and(|pairs| !pairs.is_empty())),
            pause_reason: job.pause_reason.map(PauseReason::name),
            waiting_reason: job.waiting_reason,
            steps_done: job.steps_done,
            total_steps: job.total_steps,
            attempts: job.attempts,
            trainer: TrainerView::from(&spec),
            adapter: spec.adapter.into(),
            quantization: QuantizationView::from(spec.quantization),
            continue_from: job.continue_from.map(|id| id.to_string()),
            chat_template_kwargs: Some(spec.chat_template_kwargs).filter(|kwargs| !kwargs.is_empty()),
            compute: ComputeView { max_price_usd: job.max_micro_usd.map(usd) },
            usage: JobUsage {
                trained_tokens: job.charged_tokens,
                node_seconds: job.node_ms as f64 / 1000.0,
                cost_usd: usd(job.micro_usd),
            },
        }
    }
}

/// The steps to come take as long as the mean of those that this run has done.
fn estimated_finish(job: &Job, now: DateTime<Utc>) -> Option<i64> {
    let (total, step_ms) = (job.total_steps?, job.mean_step_ms?);
    if job.state != JobState::Running {
        return None;
    }
    let rest_ms = step_ms * (total - job.steps_done).max(0) as f64;
    Some(now.timestamp() + (rest_ms / 1000.0).ceil() as i64)
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
    /// The metrics of an event of type `metrics`; of a `message` what it says, for programs, if there is more to say: the
    /// curve of a range test.
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
    /// Its name as a model, for chats and completions: `ft:…:ckpt-step-N`.
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
    pub train_mean_token_accuracy: Option<f64>,
    pub valid_loss: Option<f64>,
    pub valid_mean_token_accuracy: Option<f64>,
    pub full_valid_loss: Option<f64>,
    pub full_valid_mean_token_accuracy: Option<f64>,
}

impl CheckpointView {
    /// A checkpoint of `job`. Each validation reads the whole file, so both kinds of OpenAI's are the same.
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

#[cfg(test)]
mod tests {
    use attune_domain::spec::Requested;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trainer_is_shown_with_the_fields_that_ask_for_it() {
        let asked = Requested {
            learning_rate_auto: true,
            micro_batch_size: Some(2),
            gradient_checkpointing: Some(true),
            optimizer: Some("adamw_8bit".into()),
            schedule: Some("cosine_with_restarts".into()),
            num_cycles: Some(3),
            over_length: Some("split".into()),
            ..Requested::default()
        };
        let shown = |asked: &Requested| {
            let spec = TrainSpec::check(asked, 360, 8192).unwrap();
            serde_json::to_value(TrainerView::from(&spec)).unwrap()
        };
        let (view, plain) = (shown(&asked), shown(&Requested::default()));
        for (name, value, default) in [
            ("learning_rate_auto", json!(true), json!(false)),
            ("learning_rate", json!(2e-4), json!(2e-4)),
            ("micro_batch_size", json!(2), json!("auto")),
            ("gradient_checkpointing", json!(true), json!("auto")),
            ("optimizer", json!("adamw_8bit"), json!("adamw")),
            ("schedule", json!("cosine_with_restarts"), json!("cosine")),
            ("num_cycles", json!(3), json!(1)),
            ("over_length", json!("split"), json!("error")),
        ] {
            assert_eq!((&view[name], &plain[name]), (&value, &default), "{name}");
        }
    }

    #[test]
    fn a_method_is_shown_under_its_own_name() {
        for (method, name, other) in [
            (Method::Supervised, "supervised", "continued_pretraining"),
            (Method::ContinuedPretraining, "continued_pretraining", "supervised"),
        ] {
            let spec = TrainSpec { method, ..TrainSpec::check(&Requested::default(), 360, 8192).unwrap() };
            let view = serde_json::to_value(MethodView::from(&spec)).unwrap();
            assert_eq!((&view["type"], &view[name]["hyperparameters"]["n_epochs"]), (&json!(name), &json!(3)));
            assert!(view.get(other).is_none());
        }
    }
}
