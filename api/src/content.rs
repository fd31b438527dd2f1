//! Answers with an object's bytes, streamed.

use attune_domain::bytes::Bytes;
use attune_store::objects::Objects;
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures::stream;

use crate::error::ApiError;

/// The object under `key`, as a file to be saved under `filename`.
///
/// # Errors
/// [`ApiError::Internal`]: the store fails, or lost it.
pub async fn answer(objects: &Objects, key: &str, filename: &str, bytes: Bytes) -> Result<Response, ApiError> {
    let object = objects.get(key).await.map_err(ApiError::internal)?;
    // An error in the middle breaks the connection before its announced length, so the caller sees it.
    let pieces = stream::try_unfold(object, |mut object| async move {
        Ok::<_, std::io::Error>(object.try_next().await.map_err(std::io::Error::other)?.map(|piece| (piece, object)))
    });
    saved_as(Body::from_stream(pieces), "application/octet-stream", filename, bytes.0)
}

/// A text that is at hand, as a file to be saved under `filename`.
///
/// # Errors
/// [`ApiError::Internal`]: never, as far as is known.
pub fn small(filename: &str, text: String) -> Result<Response, ApiError> {
    let bytes = text.len() as u64;
    saved_as(Body::from(text), "application/octet-stream", filename, bytes)
}

/// An answer of this length, to be saved under `filename`.
///
/// # Errors
/// [`ApiError::Internal`]: never, as far as is known.
pub fn saved_as(body: Body, kind: &'static str, filename: &str, bytes: u64) -> Result<Response, ApiError> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let saved_as = format!("attachment; filename=\"{}\"", filename.chars().map(plain).collect::<String>());
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_str(&saved_as).map_err(ApiError::internal)?);
    Ok(response)
}
