//! Takes a dataset out of a multipart form: every row is checked while the bytes stream into the object store.
//!
//! Memory: one part of the store's upload and one line. The form's fields may come in any order.

use std::time::Duration;

use attune_domain::{
    dataset::{DatasetFacts, RowChecker},
    id::ProjectId,
    run::Blob,
};
use attune_store::{
    blob,
    file::{self, File, NewFile},
    objects::upload_key,
};
use axum::{
    extract::{Multipart, multipart::Field, multipart::MultipartError},
    http::StatusCode,
};

use crate::{
    app::App,
    error::ApiError,
    incoming::{Arrived, Incoming, Staged},
};

/// The one purpose that is taken.
pub const PURPOSE: &str = "fine-tune";

/// The longest value of a field that is no file.
const FIELD_BYTES: usize = 1 << 10;

/// How long the rest of a refused body is read, so that its sender gets to read the refusal.
const DRAIN: Duration = Duration::from_secs(20);

/// A file that lies in the store, checked, but is not kept yet.
struct Received {
    staged: Staged,
    filename: String,
    facts: DatasetFacts,
    arrived: Arrived,
}

/// Takes the form and keeps its file.
///
/// # Errors
/// The form is not whole or has a wrong field, the file is too large, a row is bad, or the store refuses it. Nothing
/// of the file is left then.
pub async fn take(app: &App, project: ProjectId, mut form: Multipart) -> Result<File, ApiError> {
    let mut received = None;
    match read(app, &mut form, &mut received).await {
        Ok(received) => keep(app, project, received).await,
        Err(error) => {
            if let Some(received) = received {
                received.staged.discard().await;
            }
            // A sender that is cut off in the middle may never read the refusal.
            let _ = tokio::time::timeout(DRAIN, drain(&mut form)).await;
            Err(error)
        }
    }
}

async fn read(app: &App, form: &mut Multipart, received: &mut Option<Received>) -> Result<Received, ApiError> {
    let mut purpose = false;
    while let Some(field) = form.next_field().await.map_err(unread)? {
        match field.name().unwrap_or("").to_owned().as_str() {
            "purpose" => {
                check_purpose(&text(field).await?)?;
                purpose = true;
            }
            "file" if received.is_some() => return Err(ApiError::invalid("file", "'file' is given twice.")),
            "file" => *received = Some(read_file(app, field).await?),
            other => return Err(unknown(other)),
        }
    }
    if !purpose {
        return Err(missing("purpose"));
    }
    received.take().ok_or_else(|| missing("file"))
}

async fn read_file(app: &App, mut field: Field<'_>) -> Result<Received, ApiError> {
    let filename = field.file_name().unwrap_or("file").to_owned();
    if filename.len() > 255 || filename.contains(char::is_control) {
        return Err(ApiError::invalid(
            "file",
            "The file's name must be at most 255 bytes, without control characters.",
        ));
    }
    let key = upload_key();
    let mut incoming = Incoming::begin(&app.objects, &key, "file", app.limits.file_bytes);
    let mut checker = RowChecker::new();
    while let Some(piece) = field.chunk().await.map_err(unread)? {
        checker.push(&piece);
        if checker.defects_so_far() > 0 {
            incoming.abort().await; // it will be refused: the rest is only read for its defects
        }
        incoming.write(&piece).await?;
    }
    let facts = match checker.finish() {
        Ok(facts) => facts,
        Err(defects) => {
            incoming.abort().await;
            return Err(defects.into());
        }
    };
    let staged = Staged::new(&app.objects, key);
    let arrived = incoming.finish().await?;
    Ok(Received { staged, filename, facts, arrived })
}

/// Puts the content under its digest and its row beside it. The row is the last step: without it there is no file, and
/// content that no row names is swept.
async fn keep(app: &App, project: ProjectId, received: Received) -> Result<File, ApiError> {
    let Received { staged, filename, facts, arrived: Arrived { sha256, bytes } } = received;
    let mut tx = app.tenant(project).await?;
    let wanted = Blob { name: filename.clone(), sha256: sha256.clone(), bytes };
    let grants = blob::grant(&mut tx, &app.objects, &[wanted]).await?;
    if grants.iter().all(|grant| grant.url.is_none()) {
        staged.discard().await; // the same content is there already
    } else {
        staged.keep(&sha256).await.map_err(|cause| ApiError::StorageRefused { what: "file", cause })?;
    }
    let (purpose, format, rows) = (PURPOSE.to_owned(), facts.format, facts.rows);
    let file = file::insert(&mut tx, project, NewFile { filename, purpose, bytes, sha256, format, rows }).await?;
    tx.commit().await?;
    Ok(file)
}

async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let name = field.name().unwrap_or("").to_owned();
    let mut value = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(unread)? {
        value.extend_from_slice(&piece);
        if value.len() > FIELD_BYTES {
            return Err(ApiError::invalid(&name, format!("'{name}' is longer than {FIELD_BYTES} bytes.")));
        }
    }
    String::from_utf8(value).map_err(|_| ApiError::invalid(&name, format!("'{name}' is not UTF-8.")))
}

fn check_purpose(given: &str) -> Result<(), ApiError> {
    if given == PURPOSE {
        return Ok(());
    }
    Err(ApiError::invalid(
        "purpose",
        format!("Invalid 'purpose': '{given}'; the only one that is taken is '{PURPOSE}'."),
    ))
}

fn missing(field: &str) -> ApiError {
    let message = format!("Missing required parameter: '{field}'.");
    ApiError::Invalid { param: Some(field.into()), code: "missing_required_parameter", message }
}

fn unknown(field: &str) -> ApiError {
    let message = format!("Unknown parameter: '{field}'; expected 'purpose' and 'file'.");
    ApiError::Invalid { param: Some(field.into()), code: "unknown_parameter", message }
}

fn unread(error: MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::TooLarge { what: "request body", limit: 0 };
    }
    let message = format!("The form did not come whole: {}.", error.body_text());
    ApiError::Invalid { param: None, code: "invalid_multipart", message }
}

async fn drain(form: &mut Multipart) {
    while let Ok(Some(mut field)) = form.next_field().await {
        while let Ok(Some(_)) = field.chunk().await {}
    }
}
