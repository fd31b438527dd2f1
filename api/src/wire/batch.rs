//! Batches in OpenAI's request and response format.

use std::collections::BTreeMap;

use attune_domain::batch::{BatchEndpoint, Defect};
use attune_inference::wire::metadata;
use attune_store::batches::batch::Batch;
use serde::{Deserialize, Serialize};
use strum::VariantArray;
use utoipa::ToSchema;

use crate::{error::ApiError, files::purpose::ExpiresAfter, http::path_id::truncated};

/// The request body for creating a batch.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBatch {
    /// The ID of a file with purpose `batch`: one request per line, each with `custom_id`, `method`, `url` and `body`.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub input_file_id: String,
    /// The endpoint of all requests: `/v1/chat/completions`, `/v1/completions` or `/v1/responses`.
    #[schema(example = "/v1/chat/completions")]
    pub endpoint: String,
    /// The time window for completion, always `24h`.
    #[schema(example = "24h")]
    pub completion_window: String,
    /// Up to 16 key-value pairs: keys of up to 64 and values of up to 512 characters.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The expiration policy of the output file and the error file.
    pub output_expires_after: Option<ExpiresAfter>,
}

impl NewBatch {
    /// Checks the fields that can be checked without a database row, and returns the endpoint.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], which names the field.
    pub fn check(&self) -> Result<BatchEndpoint, ApiError> {
        let Ok(endpoint) = self.endpoint.parse::<BatchEndpoint>() else {
            let allowed: Vec<&str> = BatchEndpoint::VARIANTS.iter().map(|endpoint| endpoint.path()).collect();
            let (given, allowed) = (truncated(&self.endpoint), allowed.join(", "));
            let message = format!("Invalid 'endpoint': '{given}'; allowed: {allowed}.");
            return Err(ApiError::invalid("endpoint", message));
        };
        if self.completion_window != "24h" {
            let given = truncated(&self.completion_window);
            let message = format!("Invalid 'completion_window': '{given}'; the only one is '24h'.");
            return Err(ApiError::invalid("completion_window", message));
        }
        self.metadata.as_ref().map_or(Ok(()), metadata::check)?;
        self.output_expires_after.clone().map(ExpiresAfter::check).transpose()?;
        Ok(endpoint)
    }
}

/// The number of requests of a batch by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct RequestCounts {
    /// The number of requests in the file; 0 until the file is validated.
    pub total: i32,
    /// The number of requests that completed successfully.
    pub completed: i32,
    /// The number of requests that failed.
    pub failed: i32,
}

/// The validation errors of a batch's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchErrors {
    /// The object type, always `list`.
    pub object: &'static str,
    /// The errors, at most 100.
    pub data: Vec<BatchError>,
}

/// A validation error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchError {
    /// A stable, machine-readable code.
    #[schema(example = "duplicate_custom_id")]
    pub code: String,
    /// The line of the file, from 1; `null` if the error concerns the whole file.
    pub line: Option<u64>,
    /// A human-readable message.
    pub message: String,
    /// The name of the invalid field.
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
    /// The batch's ID.
    #[schema(example = "batch_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `batch`.
    pub object: &'static str,
    /// The endpoint of all requests.
    pub endpoint: String,
    /// The validation errors of the file, if the status is `failed`.
    pub errors: Option<BatchErrors>,
    /// The ID of the file with the requests.
    pub input_file_id: String,
    /// The time window for completion, always `24h`.
    pub completion_window: String,
    /// The status: `validating`, `in_progress`, `finalizing`, `completed`, `failed`, `expired`, `cancelling` or
    /// `cancelled`.
    pub status: &'static str,
    /// The ID of the file with successful responses, once the batch has ended and if there are any.
    pub output_file_id: Option<String>,
    /// The ID of the file with errors, once the batch has ended and if there are any.
    pub error_file_id: Option<String>,
    /// The creation time.
    pub created_at: i64,
    /// The time at which the file passed validation.
    pub in_progress_at: Option<i64>,
    /// The time at which the batch expires. Requests that have no response by then are not processed.
    pub expires_at: i64,
    /// The time at which every request had a response.
    pub finalizing_at: Option<i64>,
    /// The time at which the output files were written.
    pub completed_at: Option<i64>,
    /// The time at which the file was refused.
    pub failed_at: Option<i64>,
    /// The time at which the batch expired.
    pub expired_at: Option<i64>,
    /// The time at which cancellation was requested.
    pub cancelling_at: Option<i64>,
    /// The time at which the batch was cancelled.
    pub cancelled_at: Option<i64>,
    /// The number of requests by status.
    pub request_counts: RequestCounts,
    /// The metadata, as in the request.
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
            endpoint: batch.endpoint.path().to_owned(),
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
