//! Usage and costs: OpenAI's pages of buckets, and Attune's own beside.
//!
//! Source of the shapes: "Usage" under "Administration" in OpenAI's API reference.

use attune_domain::id::{AdapterVersionId, ApiKeyId, JobId};
use attune_store::tenancy::usage::Sums;
use serde::Serialize;
use utoipa::ToSchema;

use super::money::usd;

/// What a project has stored, and what it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StorageUsage {
    /// Always `organization.usage.storage`.
    pub object: &'static str,
    /// The project.
    pub project_id: String,
    /// Bytes of its files, uploads under way, base models, adapters and checkpoints.
    pub bytes: u64,
    /// Objects that they are.
    pub objects: u64,
    /// The most bytes; whatever would go beyond is refused.
    pub limit_bytes: u64,
    /// The most objects.
    pub limit_objects: u64,
}

/// A part of a report.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// Always `page`.
    #[schema(example = "page")]
    pub object: &'static str,
    /// Buckets, oldest first; those without usage too.
    pub data: Vec<Bucket<T>>,
    /// More follow.
    pub has_more: bool,
    /// `page` of the next part.
    pub next_page: Option<String>,
}

/// A span of time.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Bucket<T> {
    /// Always `bucket`.
    #[schema(example = "bucket")]
    pub object: &'static str,
    /// Unix time, in seconds.
    pub start_time: i64,
    /// Unix time, in seconds; not included.
    pub end_time: i64,
    /// Sums, one for each group that was asked for; empty: nothing was used.
    pub results: Vec<T>,
}

/// What answers used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct CompletionsUsage {
    /// Always `organization.usage.completions.result`.
    pub object: &'static str,
    pub input_tokens: i64,
    /// Always 0: every prompt is charged whole.
    pub input_cached_tokens: i64,
    pub output_tokens: i64,
    /// Always 0.
    pub input_audio_tokens: i64,
    /// Always 0.
    pub output_audio_tokens: i64,
    pub num_model_requests: i64,
    pub project_id: Option<String>,
    /// Always `null`: usage is told apart by key.
    pub user_id: Option<String>,
    pub api_key_id: Option<String>,
    pub model: Option<String>,
    /// Always `null`: answers of batches are counted with the others.
    pub batch: Option<bool>,
    /// Which adapter answered. Attune's own.
    pub adapter_id: Option<String>,
}

/// What training used. Attune's own.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TrainingUsage {
    /// Always `organization.usage.training.result`.
    pub object: &'static str,
    /// Tokens with a loss; each step of a job once, however often it was done again.
    pub trained_tokens: i64,
    /// For which runs held machines.
    pub node_seconds: f64,
    /// Runs that ended.
    pub num_runs: i64,
    /// If asked for.
    pub project_id: Option<String>,
    /// If asked for: who made the jobs.
    pub api_key_id: Option<String>,
    /// If asked for: the base that was trained over.
    pub model: Option<String>,
    /// If asked for.
    pub fine_tuning_job_id: Option<String>,
}

/// What was spent.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Cost {
    /// Always `organization.costs.result`.
    pub object: &'static str,
    /// How much.
    pub amount: Amount,
    /// If asked for: `training` or `completions`.
    pub line_item: Option<String>,
    /// If asked for.
    pub project_id: Option<String>,
}

/// Money.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Amount {
    /// How much.
    pub value: f64,
    /// Always `usd`.
    pub currency: &'static str,
}

impl CompletionsUsage {
    /// Sums of answers; `project` if it is to be told.
    pub fn new(sums: Sums, project: Option<&str>) -> Self {
        Self {
            object: "organization.usage.completions.result",
            input_tokens: sums.input_tokens,
            input_cached_tokens: 0,
            output_tokens: sums.output_tokens,
            input_audio_tokens: 0,
            output_audio_tokens: 0,
            num_model_requests: sums.requests,
            project_id: project.map(str::to_owned),
            user_id: None,
            api_key_id: sums.api_key_id.map(|id| ApiKeyId::new(id).to_string()),
            model: sums.model,
            batch: None,
            adapter_id: sums.adapter_version_id.map(|id| AdapterVersionId::new(id).to_string()),
        }
    }
}

impl TrainingUsage {
    /// Sums of runs; `project` if it is to be told.
    pub fn new(sums: Sums, project: Option<&str>) -> Self {
        Self {
            object: "organization.usage.training.result",
            trained_tokens: sums.trained_tokens,
            node_seconds: sums.node_ms as f64 / 1000.0,
            num_runs: sums.runs,
            project_id: project.map(str::to_owned),
            api_key_id: sums.api_key_id.map(|id| ApiKeyId::new(id).to_string()),
            model: sums.model,
            fine_tuning_job_id: sums.job_id.map(|id| JobId::new(id).to_string()),
        }
    }
}

impl Cost {
    /// What sums came to; `project` if it is to be told.
    pub fn new(sums: Sums, project: Option<&str>) -> Self {
        Self {
            object: "organization.costs.result",
            amount: Amount { value: usd(sums.micro_usd), currency: "usd" },
            line_item: sums.kind,
            project_id: project.map(str::to_owned),
        }
    }
}
