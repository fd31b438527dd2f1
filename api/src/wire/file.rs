//! Files as users see them: OpenAI's file object, and what the check of the rows found.

use attune_store::file::File;
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
    /// Always `fine-tune`.
    pub purpose: String,
    /// Always `processed`: a file with a bad row is refused at once.
    pub status: &'static str,
    /// Always `null`.
    pub status_details: Option<String>,
    /// SHA-256 of its content. Attune's own.
    pub sha256: String,
    /// Rows in it. Attune's own.
    pub rows: u64,
    /// `chat`, `completion` or `text`. Attune's own.
    pub format: &'static str,
}

impl From<File> for FileView {
    fn from(file: File) -> Self {
        Self {
            id: file.file_id.to_string(),
            object: "file",
            bytes: file.bytes.0,
            created_at: file.created_at.timestamp(),
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
            status_details: None,
            sha256: file.sha256,
            rows: file.rows,
            format: file.format.name(),
        }
    }
}

/// Something is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Deleted {
    /// Its id.
    pub id: String,
    /// What it was: `file` or `model`.
    pub object: &'static str,
    /// Always `true`.
    pub deleted: bool,
}

/// The form of an upload. Only a description: the form is read piece by piece.
#[derive(Debug, ToSchema)]
pub struct FileForm {
    /// `fine-tune`.
    pub purpose: String,
    /// JSONL: chat rows (`{"messages": [...]}`) completion rows (`{"prompt": …, "completion": …}`)
    /// or text rows (`{"text": …}`), one kind per file.
    #[schema(format = Binary, value_type = String)]
    pub file: Vec<u8>,
}
