//! Usage and costs: OpenAI's pages of buckets, and Attune's extensions.
//!
//! Source of the formats: "Usage" under "Administration" in OpenAI's API reference.

use attune_domain::id::{AdapterVersionId, ApiKeyId, JobId};
use attune_store::tenancy::usage::Sums;
use serde::Serialize;
use utoipa::ToSchema;

use super::money::usd;

/// A project's storage usage and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StorageUsage {
    /// The object type, always `organization.usage.storage`.
    pub object: &'static str,
    /// The project's ID.
    pub project_id: String,
    /// The number of bytes of its files, uploads in progress, base models, adapters and checkpoints.
    pub bytes: u64,
    /// The number of those objects.
    pub objects: u64,
    /// The maximum number of bytes; a request that would exceed it is refused.
    pub limit_bytes: u64,
    /// The maximum number of objects.
    pub limit_objects: u64,
}

/// A page of a report.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// The object type, always `page`.
    #[schema(example = "page")]
    pub object: &'static str,
    /// The buckets, oldest first, including those without usage.
    pub data: Vec<Bucket<T>>,
    /// `true` if more pages follow.
    pub has_more: bool,
    /// The value of `page` for the next page.
    pub next_page: Option<String>,
}

/// A time bucket.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Bucket<T> {
    /// The object type, always `bucket`.
    #[schema(example = "bucket")]
    pub object: &'static str,
    /// The start of the bucket, in Unix seconds.
    pub start_time: i64,
    /// The end of the bucket, in Unix seconds, exclusive.
    pub end_time: i64,
    /// The sums, one for each requested group; empty if there was no usage.
    pub results: Vec<T>,
}

/// The usage of completions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct CompletionsUsage {
    /// The object type, always `organization.usage.completions.result`.
    pub object: &'static str,
    pub input_tokens: i64,
    /// Always 0: every prompt is charged in full.
    pub input_cached_tokens: i64,
    pub output_tokens: i64,
    /// Always 0.
    pub input_audio_tokens: i64,
    /// Always 0.
    pub output_audio_tokens: i64,
    pub num_model_requests: i64,
    pub project_id: Option<String>,
    /// Always `null`: usage is recorded by API key.
    pub user_id: Option<String>,
    pub api_key_id: Option<String>,
    pub model: Option<String>,
    /// Always `null`: responses of batches are counted with the others.
    pub batch: Option<bool>,
    /// The ID of the adapter that was used. Attune extension.
    pub adapter_id: Option<String>,
}

/// The usage of training. Attune extension.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TrainingUsage {
    /// The object type, always `organization.usage.training.result`.
    pub object: &'static str,
    /// The number of tokens with a loss. Each step of a job counts once, however often it was repeated. Refunds are
    /// subtracted.
    pub trained_tokens: i64,
    /// The time for which runs held nodes, in seconds. Refunds are subtracted.
    pub node_seconds: f64,
    /// The number of runs that ended.
    pub num_runs: i64,
    /// The project's ID, if grouped by it.
    pub project_id: Option<String>,
    /// The ID of the API key that created the jobs, if grouped by it.
    pub api_key_id: Option<String>,
    /// The name of the base model, if grouped by it.
    pub model: Option<String>,
    /// The job's ID, if grouped by it.
    pub fine_tuning_job_id: Option<String>,
}

/// The costs of a group.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Cost {
    /// The object type, always `organization.costs.result`.
    pub object: &'static str,
    /// The amount.
    pub amount: Amount,
    /// The line item, `training`, `completions`, `deployment` or `refund`, if grouped by it. The amount of a refund is
    /// negative.
    pub line_item: Option<String>,
    /// The project's ID, if grouped by it.
    pub project_id: Option<String>,
}

/// An amount of money.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Amount {
    /// The value.
    pub value: f64,
    /// The currency, always `usd`.
    pub currency: &'static str,
}

impl CompletionsUsage {
    /// Creates the view of completions' sums, with `project` if they are grouped by project.
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
    /// Creates the view of runs' sums, with `project` if they are grouped by project.
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
    /// Creates the view of the sums' cost, with `project` if they are grouped by project.
    pub fn new(sums: Sums, project: Option<&str>) -> Self {
        Self {
            object: "organization.costs.result",
            amount: Amount { value: usd(sums.micro_usd), currency: "usd" },
            line_item: sums.kind,
            project_id: project.map(str::to_owned),
        }
    }
}
