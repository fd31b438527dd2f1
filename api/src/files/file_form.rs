//! A file from a multipart form, streamed into the object store. The form's fields may come in any order.
//!
//! Memory: one part of the object store's multipart upload.

use std::time::Duration;

use attune_domain::id::ProjectId;
use attune_store::files::{
    file::File,
    objects::upload_key,
    staging::{Arrived, Incoming, Staged},
};

use crate::{
    app::App,
    error::ApiError,
    files::{
        ingest::{self, Received},
        multipart::{Form, Part},
        purpose::{ExpiresAfter, Purpose, check_filename},
        storage,
    },
    http::path_id::truncated,
};

/// The time for which the rest of a refused body is read, so that its sender gets to read the refusal.
const DRAIN: Duration = Duration::from_secs(20);

/// The fields that have been read so far.
#[derive(Default)]
struct Said {
    purpose: Option<Purpose>,
    anchor: Option<String>,
    seconds: Option<String>,
    file: Option<(Staged, String, Arrived)>,
}

/// Reads the form and stores its file.
///
/// # Errors
/// The form is incomplete or has an invalid field, the file is too large, a row of a dataset is invalid, or the store
/// fails. Nothing of the file is kept then.
pub async fn take(app: &App, project: ProjectId, mut form: Form) -> Result<File, ApiError> {
    storage::expect(app, project, 0).await?;
    let mut said = Said::default();
    match read(app, &mut form, &mut said).await.and_then(|()| said.received()) {
        Ok(received) => ingest::keep(app, project, received).await,
        Err(error) => {
            read_on(&mut form).await;
            Err(error)
        }
    }
}

/// Streams the form's one file, the field `name`, into the store under a key of its own; any other field is refused.
///
/// # Errors
/// As [`take`].
pub async fn one_file(
    app: &App,
    form: &mut Form,
    name: &'static str,
    limit: u64,
) -> Result<(Staged, Arrived), ApiError> {
    let mut taken = None;
    let read = async {
        while let Some(field) = form.next_field().await? {
            match field.name() {
                given if given != name => return Err(unknown(given, &format!("'{name}'"))),
                _ if taken.is_some() => return Err(twice(name)),
                _ => taken = Some(stage(app, field, name, limit).await?),
            }
        }
        Ok(())
    };
    if let Err(error) = read.await {
        read_on(form).await;
        return Err(error);
    }
    taken.ok_or_else(|| missing(name))
}

async fn read(app: &App, form: &mut Form, said: &mut Said) -> Result<(), ApiError> {
    while let Some(field) = form.next_field().await? {
        match field.name().to_owned().as_str() {
            "purpose" => once("purpose", &mut said.purpose, Purpose::check(&field.text().await?)?)?,
            "expires_after[anchor]" => once("expires_after[anchor]", &mut said.anchor, field.text().await?)?,
            "expires_after[seconds]" => once("expires_after[seconds]", &mut said.seconds, field.text().await?)?,
            "file" if said.file.is_some() => return Err(twice("file")),
            "file" => {
                let filename = field.file_name().unwrap_or("file").to_owned();
                check_filename("file", &filename)?;
                let (staged, arrived) = stage(app, field, "file", app.limits.file_bytes).await?;
                said.file = Some((staged, filename, arrived));
            }
            other => {
                let known = "'purpose', 'file', 'expires_after[anchor]' and 'expires_after[seconds]'";
                return Err(unknown(other, known));
            }
        }
    }
    Ok(())
}

fn once<T>(name: &str, place: &mut Option<T>, value: T) -> Result<(), ApiError> {
    match place.replace(value) {
        Some(_) => Err(twice(name)),
        None => Ok(()),
    }
}

impl Said {
    fn received(self) -> Result<Received, ApiError> {
        let purpose = self.purpose.ok_or_else(|| missing("purpose"))?;
        let expires_after = ExpiresAfter::from_form(self.anchor.as_deref(), self.seconds.as_deref())?;
        let (staged, filename, arrived) = self.file.ok_or_else(|| missing("file"))?;
        let expires_after_seconds = expires_after.map(|after| after.seconds);
        Ok(Received { staged, filename, purpose, arrived, expires_after_seconds, upload: None })
    }
}

async fn stage(app: &App, mut field: Part<'_>, what: &'static str, limit: u64) -> Result<(Staged, Arrived), ApiError> {
    let key = upload_key();
    let mut incoming = Incoming::begin(&app.objects, &key, what, limit);
    while let Some(piece) = field.chunk().await? {
        incoming.write(&piece).await?;
    }
    let (staged, arrived) = incoming.stage(&app.objects, key).await?;
    if arrived.bytes.0 == 0 {
        return Err(ApiError::invalid(what, format!("'{what}' is empty.")));
    }
    Ok((staged, arrived))
}

/// Returns the error for a missing field.
pub fn missing(field: &str) -> ApiError {
    let message = format!("Missing required parameter: '{field}'.");
    ApiError::Invalid { param: Some(field.into()), code: "missing_required_parameter", message }
}

/// Returns the error for a repeated field.
pub fn twice(field: &str) -> ApiError {
    ApiError::invalid(field, format!("'{field}' is given twice."))
}

/// Returns the error for an unknown field.
pub fn unknown(field: &str, known: &str) -> ApiError {
    let field = truncated(field);
    let message = format!("Unknown parameter: '{field}'; expected {known}.");
    ApiError::Invalid { param: Some(field), code: "unknown_parameter", message }
}

/// Reads the rest of a refused form: a sender whose connection is closed during the upload may never read the refusal.
pub async fn read_on(form: &mut Form) {
    let _ = tokio::time::timeout(DRAIN, drain(form)).await;
}

async fn drain(form: &mut Form) {
    while let Ok(Some(mut field)) = form.next_of_any_number().await {
        while let Ok(Some(_)) = field.chunk().await {}
    }
}
