//! Preconditions: reads the conditions of a request ([`crate::middleware::conditions`]), which its transactions check,
//! and adds the `ETag` to responses, which `If-None-Match` is compared with.
//!
//! An `ETag` is `"version"` or `"version.digest"`. The version is the row's ([`attune_store::version`]), and is
//! compared with `If-Match`. The digest is that of the body: a response may contain more than its row, such as a
//! remaining time, and `If-None-Match` must not report such a response as unchanged. An object without versions has
//! only the digest.

use std::sync::Arc;

use attune_domain::digest::hex;
use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request},
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use crate::{
    error::ApiError,
    http::request_context::RequestContext,
    middleware::conditions::{Conditions, tags},
    policy::Policy,
};

/// The maximum length of a response with an `ETag`, in bytes. A longer one is an internal error; no single object is
/// that long.
const TAGGED_BYTES: usize = 1 << 20;

/// The number of bytes of a body's digest in an `ETag`.
const DIGEST_BYTES: usize = 12;

/// Reads a request's conditions, and adds the `ETag` to its response.
pub async fn keep(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let names = parameters(&mut parts).await;
    let policy = parts.extensions.get::<Policy>().copied();
    let conditions = match Conditions::read(&parts, policy, names) {
        Ok(conditions) => Arc::new(conditions),
        Err(refused) => return refused.into_response(),
    };
    let looks = parts.method == Method::GET;
    let known = looks.then(|| tags(&parts.headers, &header::IF_NONE_MATCH)).flatten();
    let request = Request::from_parts(parts, body);
    let context = RequestContext::current().with_conditions(Arc::clone(&conditions));
    let mut response = context.run(next.run(request)).await;
    if !looks || response.status() != StatusCode::OK {
        return response;
    }
    if conditions.shows_version() || path.ends_with('}') {
        response = tagged(response, conditions.take_seen()).await;
    }
    unchanged(response, known)
}

async fn parameters(parts: &mut Parts) -> Vec<String> {
    let parameters = RawPathParams::from_request_parts(parts, &()).await;
    parameters.iter().flatten().map(|(_, value)| value.to_owned()).collect()
}

/// Adds an `ETag` to the response, if it is JSON and has none yet.
async fn tagged(response: Response, version: Option<String>) -> Response {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !is_json || response.headers().contains_key(header::ETAG) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = match to_bytes(body, TAGGED_BYTES).await {
        Ok(body) => body,
        Err(error) => return ApiError::internal(error).into_response(),
    };
    let digest = hex(&Sha256::digest(&body)[..DIGEST_BYTES]);
    let tag = version.map_or_else(|| format!("\"{digest}\""), |version| format!("\"{version}.{digest}\""));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        parts.headers.insert(header::ETAG, tag);
    }
    Response::from_parts(parts, Body::from(body))
}

/// Returns 304 Not Modified instead of the response if the caller already has it. Source: RFC 9110, §13.1.2.
fn unchanged(response: Response, known: Option<Vec<String>>) -> Response {
    let (Some(known), Some(tag)) = (known, response.headers().get(header::ETAG).cloned()) else { return response };
    let is_known = |given: &String| given == "*" || given.trim_start_matches("W/").as_bytes() == tag.as_bytes();
    if !known.iter().any(is_known) {
        return response;
    }
    let mut headers = response.headers().clone();
    for of_the_body in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_DISPOSITION] {
        headers.remove(of_the_body);
    }
    let mut unchanged = StatusCode::NOT_MODIFIED.into_response();
    unchanged.headers_mut().extend(headers);
    unchanged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_body_has_the_same_tag_and_is_not_sent_twice() {
        let answer = |n: u8| axum::Json(serde_json::json!({ "n": n })).into_response();
        let tag = tagged(answer(1), Some("7".into())).await.headers()[header::ETAG].clone();
        assert!(tag.to_str().unwrap().starts_with("\"7."), "{tag:?}");
        let known = || Some(vec![format!("W/{}", tag.to_str().unwrap())]);
        let again = unchanged(tagged(answer(1), Some("7".into())).await, known());
        assert_eq!((again.status(), again.headers().get(header::ETAG)), (StatusCode::NOT_MODIFIED, Some(&tag)));
        let other = unchanged(tagged(answer(2), Some("7".into())).await, known());
        assert_eq!(other.status(), StatusCode::OK, "its row is the same, what it shows is not");
    }
}
