//! Uploads and their parts as users see them: OpenAI's objects.

use attune_domain::id::UploadId;
use attune_store::files::upload::{Part, Upload};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{error::ApiError, files::purpose::ExpiresAfter, http::path_id::shown, wire::file::FileView};

/// An upload to be begun.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUpload {
    /// What the file is called.
    #[schema(example = "train.jsonl")]
    pub filename: String,
    /// `fine-tune`, `batch`, `user_data` or `evals`.
    #[schema(example = "fine-tune")]
    pub purpose: String,
    /// What the parts come to.
    #[schema(minimum = 1)]
    pub bytes: u64,
    /// The kind of its content, as `text/jsonl`. Its form is checked; what the file is, its content tells.
    #[schema(example = "text/jsonl")]
    pub mime_type: String,
    /// When the file goes by itself.
    pub expires_after: Option<ExpiresAfter>,
}

impl NewUpload {
    /// Checks the kind of content.
    ///
    /// # Errors
    /// It is not `type/subtype`.
    pub fn check_mime_type(&self) -> Result<(), ApiError> {
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        let essence = self.mime_type.split(';').next().unwrap_or("").trim();
        match essence.split_once('/') {
            Some((kind, subtype)) if self.mime_type.len() <= 255 && plain(kind) && plain(subtype) => Ok(()),
            _ => {
                let shown = shown(&self.mime_type);
                let message = format!("Invalid 'mime_type': '{shown}' is not of the form 'type/subtype'.");
                Err(ApiError::invalid("mime_type", message))
            }
        }
    }
}

/// Which parts make the file.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Completion {
    /// In their order.
    pub part_ids: Vec<String>,
    /// The MD5 of the whole, in hex; left out: it is not checked.
    pub md5: Option<String>,
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UploadView {
    /// Its id.
    #[schema(example = "upload_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `upload`.
    pub object: &'static str,
    /// What the parts must come to.
    pub bytes: u64,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// What the file is called.
    pub filename: String,
    /// What the file is for.
    pub purpose: String,
    /// `pending`, `completed`, `cancelled` or `expired`.
    #[schema(example = "pending")]
    pub status: &'static str,
    /// When it goes if it is not completed, in Unix time.
    pub expires_at: i64,
    /// The file that it became.
    pub file: Option<FileView>,
}

impl UploadView {
    /// An upload, and the file that it became.
    pub fn new(upload: Upload, file: Option<FileView>) -> Self {
        Self {
            id: upload.upload_id.to_string(),
            object: "upload",
            bytes: upload.bytes.0,
            created_at: upload.created_at.timestamp(),
            filename: upload.filename,
            purpose: upload.purpose,
            status: upload.status.name(),
            expires_at: upload.expires_at.timestamp(),
            file,
        }
    }
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PartView {
    /// Its id.
    #[schema(example = "part_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `upload.part`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// The upload's id.
    pub upload_id: String,
}

impl PartView {
    /// A part of this upload.
    pub fn new(upload: UploadId, part: &Part) -> Self {
        Self {
            id: part.upload_part_id.to_string(),
            object: "upload.part",
            created_at: part.created_at.timestamp(),
            upload_id: upload.to_string(),
        }
    }
}

/// The form of a part. Only a description: the form is read piece by piece.
#[derive(Debug, ToSchema)]
pub struct PartForm {
    /// At most 64 MiB.
    #[schema(format = Binary, value_type = String)]
    pub data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_content_has_two_halves() {
        let check = |kind: &str| {
            let new = serde_json::json!({"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": kind});
            serde_json::from_value::<NewUpload>(new).unwrap().check_mime_type()
        };
        for kind in ["text/jsonl", "application/vnd.apache.parquet", "text/csv; charset=utf-8"] {
            assert!(check(kind).is_ok(), "{kind}");
        }
        for kind in ["", "text", "text/", "/csv", "te xt/csv", "text/c,sv"] {
            assert!(check(kind).is_err(), "{kind}");
        }
    }
}
