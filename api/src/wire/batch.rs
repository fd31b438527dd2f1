//! Batches as OpenAI's clients send and read them.

use std::collections::BTreeMap;

use attune_domain::batch::Defect;
use attune_store::batches::batch::Batch;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::metadata;
use crate::{error::ApiError, files::purpose::ExpiresAfter, http::path_id::shown};

/// Where a batch's requests may go.
const ENDPOINTS: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// Requests of a file, to be answered when there is time.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBatch {
    /// A file of purpose `batch`: a line per request, each with `custom_id`, `method`, `url` and `body`.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub input_file_id: String,
    /// Where all of them go: `/v1/chat/completions` or `/v1/completions`.
    #[schema(example = "/v1/chat/completions")]
    pub endpoint: String,
    /// Always `24h`.
    #[schema(example = "24h")]
    pub completion_window: String,
    /// At most 16 pairs, keys up to 64 and values up to 512 characters.
    pub metadata: Option<BTreeMap<String, String>>,
    /// When the output and the error file go by themselves.
    pub output_expires_after: Option<ExpiresAfter>,
}

impl NewBatch {
    /// Checks what needs no row.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], naming the field.
    pub fn check(&self) -> Result<(), ApiError> {
        if !ENDPOINTS.contains(&self.endpoint.as_str()) {
            let (given, allowed) = (shown(&self.endpoint), ENDPOINTS.join(", "));
            let message = format!("Invalid 'endpoint': '{given}'; allowed: {allowed}.");
            return Err(ApiError::invalid("endpoint", message));
        }
        if self.completion_window != "24h" {
            let given = shown(&self.completion_window);
            let message = format!("Invalid 'completion_window': '{given}'; the only one is '24h'.");
            return Err(ApiError::invalid("completion_window", message));
        }
        self.metadata.as_ref().map_or(Ok(()), metadata::check)?;
        self.output_expires_after.clone().map(ExpiresAfter::check).transpose().map(drop)
    }
}

/// How many requests have come how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct RequestCounts {
    /// In the file; 0 until it is checked.
    pub total: i32,
    /// Answered well.
    pub completed: i32,
    /// Answered with an error.
    pub failed: i32,
}

/// What is wrong with a batch's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchErrors {
    /// Always `list`.
    pub object: &'static str,
    /// At most 100.
    pub data: Vec<BatchError>,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchError {
    /// Stable, for programs.
    #[schema(example = "duplicate_custom_id")]
    pub code: String,
    /// Of the file, from 1; `null`: the file as a whole.
    pub line: Option<u64>,
    /// A sentence.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
}

impl From<Defect> for BatchError {
    fn from(Defect { code, line, message, param }: Defect) -> Self {
        Self { code, line, message, param }
    }
}

/// A batch. Times are Unix times, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BatchView {
    /// Its id.
    #[schema(example = "batch_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `batch`.
    pub object: &'static str,
    /// Where its requests go.
    pub endpoint: String,
    /// What is wrong with its file, when it `failed`.
    pub errors: Option<BatchErrors>,
    /// The file of its requests.
    pub input_file_id: String,
    /// Always `24h`.
    pub completion_window: String,
    /// `validating`, `in_progress`, `finalizing`, `completed`, `failed`, `expired`, `cancelling` or `cancelled`.
    pub status: &'static str,
    /// The file of good answers, once it has ended and if there are any.
    pub output_file_id: Option<String>,
    /// The file of errors, likewise.
    pub error_file_id: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When its file was found good.
    pub in_progress_at: Option<i64>,
    /// What is not answered by then is not asked any more.
    pub expires_at: i64,
    /// When every request had an answer.
    pub finalizing_at: Option<i64>,
    /// When its files were there.
    pub completed_at: Option<i64>,
    /// When its file was refused.
    pub failed_at: Option<i64>,
    /// When its time was up.
    pub expired_at: Option<i64>,
    /// When its user wanted it to stop.
    pub cancelling_at: Option<i64>,
    /// When it stopped.
    pub cancelled_at: Option<i64>,
    /// How many requests have come how far.
    pub request_counts: RequestCounts,
    /// As it came.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<serde_json::Value>,
}

impl From<Batch> for BatchView {
    fn from(batch: Batch) -> Self {
        let moment = |at: Option<chrono::DateTime<chrono::Utc>>| at.map(|at| at.timestamp());
        let data: Vec<BatchError> = batch.defects.into_iter().map(BatchError::from).collect();
        Self {
            id: batch.batch_id.to_string(),
            object: "batch",
            endpoint: batch.endpoint,
            errors: (!data.is_empty()).then_some(BatchErrors { object: "list", data }),
            input_file_id: batch.input_file_id.to_string(),
            completion_window: batch.completion_window,
            status: batch.state.name(),
            output_file_id: batch.output_file_id.map(|id| id.to_string()),
            error_file_id: batch.error_file_id.map(|id| id.to_string()),
            created_at: batch.created_at.timestamp(),
            in_progress_at: moment(batch.in_progress_at),
            expires_at: batch.expires_at.timestamp(),
            finalizing_at: moment(batch.finalizing_at),
            completed_at: moment(batch.completed_at),
            failed_at: moment(batch.failed_at),
            expired_at: moment(batch.expired_at),
            cancelling_at: moment(batch.cancelling_at),
            cancelled_at: moment(batch.cancelled_at),
            request_counts: RequestCounts { total: batch.total, completed: batch.completed, failed: batch.failed },
            metadata: batch.metadata,
        }
    }
}
