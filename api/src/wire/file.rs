//! Files as the API returns them: OpenAI's file object, and the results of validating the rows.

use attune_store::files::file::{File, Source};
use serde::Serialize;
use utoipa::ToSchema;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileView {
    /// The file's ID.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `file`.
    pub object: &'static str,
    /// The size in bytes.
    pub bytes: u64,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The filename given with the upload.
    pub filename: String,
    /// The time at which the file expires, in Unix seconds; `null` if it does not expire.
    pub expires_at: Option<i64>,
    /// The purpose: `fine-tune`, `batch`, `user_data` or `evals`; `fine-tune-results` and `batch_output` for files that
    /// the platform creates.
    pub purpose: String,
    /// The status, always `processed`: a file with an invalid row is refused on upload.
    pub status: &'static str,
    /// Always `null`.
    pub status_details: Option<String>,
    /// The SHA-256 digest of the content, in hex. Attune extension.
    pub sha256: String,
    /// The number of rows of a dataset. Attune extension.
    pub rows: Option<u64>,
    /// The kind of rows that a dataset is converted to: `chat`, `completion` or `text`. Attune extension.
    pub format: Option<&'static str>,
    /// The source format of a dataset. Attune extension.
    pub source: Option<SourceView>,
}

/// The source format of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SourceView {
    /// The file format: `jsonl`, `json`, `csv`, `tsv` or `parquet`.
    #[schema(example = "jsonl")]
    pub container: String,
    /// The compression, `gzip` or `zstd`; `null` if the file is not compressed.
    pub compression: Option<String>,
    /// The shape of the rows: `chat`, `completion`, `text`, `alpaca`, `sharegpt` or `preference`.
    #[schema(example = "chat")]
    pub shape: String,
}

impl From<Source> for SourceView {
    fn from(Source { container, compression, shape }: Source) -> Self {
        Self { container, compression, shape }
    }
}

impl From<File> for FileView {
    fn from(file: File) -> Self {
        Self {
            id: file.file_id.to_string(),
            object: "file",
            bytes: file.bytes.0,
            created_at: file.created_at.timestamp(),
            filename: file.filename,
            expires_at: file.expires_at.map(|at| at.timestamp()),
            purpose: file.purpose,
            status: "processed",
            status_details: None,
            sha256: file.sha256.to_string(),
            rows: file.dataset.as_ref().map(|dataset| dataset.rows),
            format: file.dataset.as_ref().map(|dataset| dataset.format.name()),
            source: file.dataset.map(|dataset| dataset.source.into()),
        }
    }
}

/// A deleted object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Deleted {
    /// The object's ID.
    pub id: String,
    /// The object type: `file`, `model` or another.
    pub object: &'static str,
    /// Always `true`.
    pub deleted: bool,
}

/// The form of a file upload. For the OpenAPI document only: the handler reads the form as a stream.
#[derive(Debug, ToSchema)]
pub struct FileForm {
    /// The purpose: `fine-tune`, `batch`, `user_data` or `evals`.
    pub purpose: String,
    /// The anchor of the expiration, always `created_at`. Requires `expires_after[seconds]`.
    #[schema(rename = "expires_after[anchor]")]
    pub expires_after_anchor: Option<String>,
    /// The number of seconds after which the file expires, from 3600 to 2592000. If omitted, the file does not expire.
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2_592_000)]
    pub expires_after_seconds: Option<u32>,
    /// The file. A dataset is JSONL, JSON, CSV, TSV or Parquet, optionally compressed with gzip or zstd. All of its
    /// rows have the same shape, for example chats (`{"messages": [...]}`), completions
    /// (`{"prompt": …, "completion": …}`) or texts (`{"text": …}`).
    #[schema(format = Binary, value_type = String)]
    pub file: Vec<u8>,
}
