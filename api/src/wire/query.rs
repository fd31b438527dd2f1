//! What the lists in query parameters hold. They are read by [`crate::page::Params`]; here they are only described.

use serde::Serialize;
use utoipa::ToSchema;

/// By what the report on completions tells apart.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of fields of the report")]
pub enum CompletionsGroup {
    ProjectId,
    ApiKeyId,
    Model,
    AdapterId,
}

/// By what the report on training tells apart.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of fields of the report")]
pub enum TrainingGroup {
    ProjectId,
    ApiKeyId,
    Model,
    FineTuningJobId,
}

/// By what the report on costs tells apart.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of fields of the report")]
pub enum CostsGroup {
    ProjectId,
    LineItem,
}

/// An id of any kind.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(pattern = "^[a-z_]+[-_][0-9a-f]{32}$", example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
pub struct AnyId(String);

/// The id of an API key.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(pattern = "^key_[0-9a-f]{32}$", example = "key_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
pub struct KeyId(String);

/// One event of a stream.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ServerSentEvent {
    /// Where the stream goes on behind: `Last-Event-ID`.
    pub id: Option<String>,
    /// Always `message`, which is never sent.
    pub event: Option<String>,
    /// The object, as JSON.
    pub data: String,
}
