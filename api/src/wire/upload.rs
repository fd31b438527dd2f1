//! Uploads and their parts as the API returns them: OpenAI's objects.

use attune_domain::id::UploadId;
use attune_store::files::upload::{Part, Upload};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{error::ApiError, files::purpose::ExpiresAfter, http::path_id::truncated, wire::file::FileView};

/// The request body for creating an upload.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUpload {
    /// The file's name.
    #[schema(example = "train.jsonl")]
    pub filename: String,
    /// The purpose: `fine-tune`, `batch`, `user_data` or `evals`.
    #[schema(example = "fine-tune")]
    pub purpose: String,
    /// The size of the whole file in bytes.
    #[schema(minimum = 1)]
    pub bytes: u64,
    /// The MIME type, such as `text/jsonl`. Only its syntax is checked; the format is detected from the content.
    #[schema(example = "text/jsonl")]
    pub mime_type: String,
    /// The expiration policy of the file.
    pub expires_after: Option<ExpiresAfter>,
}

impl NewUpload {
    /// Checks the syntax of the MIME type.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: it is not `type/subtype`.
    pub fn check_mime_type(&self) -> Result<(), ApiError> {
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        let essence = self.mime_type.split(';').next().unwrap_or("").trim();
        match essence.split_once('/') {
            Some((kind, subtype)) if self.mime_type.len() <= 255 && plain(kind) && plain(subtype) => Ok(()),
            _ => {
                let shown = truncated(&self.mime_type);
                let message = format!("Invalid 'mime_type': '{shown}' is not of the form 'type/subtype'.");
                Err(ApiError::invalid("mime_type", message))
            }
        }
    }
}

/// The request body for completing an upload.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Completion {
    /// The IDs of the parts, in order.
    pub part_ids: Vec<String>,
    /// The MD5 digest of the whole file, in hex. Not checked if omitted.
    pub md5: Option<String>,
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UploadView {
    /// The upload's ID.
    #[schema(example = "upload_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `upload`.
    pub object: &'static str,
    /// The size of the whole file in bytes.
    pub bytes: u64,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The file's name.
    pub filename: String,
    /// The file's purpose.
    pub purpose: String,
    /// The status: `pending`, `completed`, `cancelled` or `expired`.
    #[schema(example = "pending")]
    pub status: &'static str,
    /// The time at which the upload expires unless it is completed, in Unix seconds.
    pub expires_at: i64,
    /// The file, once the upload is completed.
    pub file: Option<FileView>,
}

impl UploadView {
    /// Creates the view of an upload and its file.
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
    /// The part's ID.
    #[schema(example = "part_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `upload.part`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The upload's ID.
    pub upload_id: String,
}

impl PartView {
    /// Creates the view of a part of this upload.
    pub fn new(upload: UploadId, part: &Part) -> Self {
        Self {
            id: part.upload_part_id.to_string(),
            object: "upload.part",
            created_at: part.created_at.timestamp(),
            upload_id: upload.to_string(),
        }
    }
}

/// The form of a part. For the OpenAPI document only: the handler reads the form as a stream.
#[derive(Debug, ToSchema)]
pub struct PartForm {
    /// The content of the part, at most 64 MiB.
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
