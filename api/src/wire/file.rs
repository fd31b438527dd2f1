//! Files as users see them: OpenAI's file object, and what the check of the rows found.

use attune_store::files::file::{File, Source};
use serde::Serialize;
use utoipa::ToSchema;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileView {
    /// Its id.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// Its length.
    pub bytes: u64,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// As it was called when it was uploaded.
    pub filename: String,
    /// When it goes by itself, in Unix time; `null`: when it is deleted.
    pub expires_at: Option<i64>,
    /// `fine-tune`, `batch`, `user_data` or `evals`; the platform's own: `fine-tune-results`, `batch_output`.
    pub purpose: String,
    /// Always `processed`: a file with a bad row is refused at once.
    pub status: &'static str,
    /// Always `null`.
    pub status_details: Option<String>,
    /// SHA-256 of its content. Attune's own.
    pub sha256: String,
    /// A dataset's rows. Attune's own.
    pub rows: Option<u64>,
    /// What is made of a dataset's rows: `chat`, `completion` or `text`. Attune's own.
    pub format: Option<&'static str>,
    /// How a dataset is written. Attune's own.
    pub source: Option<SourceView>,
}

/// How a dataset is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SourceView {
    /// `jsonl`, `json`, `csv`, `tsv` or `parquet`.
    #[schema(example = "jsonl")]
    pub container: String,
    /// `gzip` or `zstd`; `null`: none.
    pub compression: Option<String>,
    /// `chat`, `completion`, `text`, `alpaca`, `sharegpt` or `preference`.
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
            sha256: file.sha256,
            rows: file.dataset.as_ref().map(|dataset| dataset.rows),
            format: file.dataset.as_ref().map(|dataset| dataset.format.name()),
            source: file.dataset.map(|dataset| dataset.source.into()),
        }
    }
}

/// Something is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Deleted {
    /// Its id.
    pub id: String,
    /// What it was: `file`, `model` or another object.
    pub object: &'static str,
    /// Always `true`.
    pub deleted: bool,
}

/// The form of an upload. Only a description: the form is read piece by piece.
#[derive(Debug, ToSchema)]
pub struct FileForm {
    /// `fine-tune`, `batch`, `user_data` or `evals`.
    pub purpose: String,
    /// Always `created_at`; together with the seconds.
    #[schema(rename = "expires_after[anchor]")]
    pub expires_after_anchor: Option<String>,
    /// After how many seconds it goes by itself, 3600 to 2592000; left out: when it is deleted.
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2_592_000)]
    pub expires_after_seconds: Option<u32>,
    /// A dataset is JSONL: chat rows (`{"messages": [...]}`) completion rows (`{"prompt": …, "completion": …}`)
    /// or text rows (`{"text": …}`), one kind per file.
    #[schema(format = Binary, value_type = String)]
    pub file: Vec<u8>,
}
