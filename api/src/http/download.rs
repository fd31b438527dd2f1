//! Responses with an object's bytes, streamed: all of them, or the requested range.

use std::ops::RangeInclusive;

use attune_domain::bytes::Bytes;
use attune_store::files::objects::Objects;
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;

use crate::{error::ApiError, http::request_context::RequestContext};

/// Returns the object under `key` as a download named `filename`. An object never changes, so its key is its `ETag`.
///
/// # Errors
/// [`ApiError::RangeNotSatisfiable`]. [`ApiError::Internal`]: the store fails, or the object is missing.
pub async fn answer(objects: &Objects, key: &str, filename: &str, bytes: Bytes) -> Result<Response, ApiError> {
    let tag = format!("\"{}\"", key.rsplit('/').next().unwrap_or(key));
    let range = RequestContext::current().range(&tag).map_or(Ok(None), |asked| wanted(&asked, bytes.0))?;
    let object = match &range {
        Some(range) => objects.get_range(key, range.clone()).await,
        None => objects.get(key).await,
    };
    let object = object.map_err(ApiError::internal)?;
    // A failure later on closes the connection before the announced length, so that the caller notices it.
    let pieces = stream::try_unfold(object, |mut object| async move {
        Ok::<_, std::io::Error>(object.try_next().await.map_err(std::io::Error::other)?.map(|piece| (piece, object)))
    });
    let length = range.as_ref().map_or(bytes.0, |range| range.end() - range.start() + 1);
    let mut response = saved_as(Body::from_stream(pieces), "application/octet-stream", filename, length)?;
    if let Some(range) = &range {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let part = format!("bytes {}-{}/{}", range.start(), range.end(), bytes.0);
        response.headers_mut().insert(header::CONTENT_RANGE, HeaderValue::from_str(&part).map_err(ApiError::internal)?);
    }
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, HeaderValue::from_str(&tag).map_err(ApiError::internal)?);
    Ok(response)
}

/// Returns a text as a download named `filename`.
///
/// # Errors
/// [`ApiError::Internal`]: a header value is invalid, which is not expected.
pub fn small(filename: &str, text: String) -> Result<Response, ApiError> {
    let bytes = text.len() as u64;
    saved_as(Body::from(text), "application/octet-stream", filename, bytes)
}

/// Returns a body of this length as a download named `filename`.
///
/// # Errors
/// [`ApiError::Internal`]: a header value is invalid, which is not expected.
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

/// Returns the range that a `Range` header selects; `None` for the whole content, as for several ranges at once.
/// Source: RFC 9110, §14.2.
fn wanted(asked: &str, length: u64) -> Result<Option<RangeInclusive<u64>>, ApiError> {
    let Some((first, last)) = asked.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..=last.min(length.saturating_sub(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..=length.saturating_sub(1),
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => length.saturating_sub(count)..=length.saturating_sub(1),
        _ => return Ok(None),
    };
    if range.is_empty() || *range.start() >= length {
        return Err(ApiError::RangeNotSatisfiable { length });
    }
    Ok(Some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_the_rfc_has_it() {
        for (asked, range) in [
            ("bytes=0-4", Some(0..=4)),
            ("bytes=5-", Some(5..=9)),
            ("bytes=-3", Some(7..=9)),
            ("bytes=2-100", Some(2..=9)),
            ("bytes=-100", Some(0..=9)),
            ("bytes=0-1,4-5", None),
            ("bytes=4-2", None),
            ("bytes=-", None),
            ("rows=0-4", None),
            ("bytes=x-4", None),
        ] {
            assert_eq!(wanted(asked, 10).unwrap(), range, "{asked}");
        }
        for (asked, length) in [("bytes=10-", 10), ("bytes=12-14", 10), ("bytes=0-", 0)] {
            assert!(matches!(wanted(asked, length), Err(ApiError::RangeNotSatisfiable { .. })), "{asked}");
        }
    }
}
