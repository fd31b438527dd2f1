//! The conditions of a request: `If-Match`, `If-None-Match`, the claim on its `Idempotency-Key`, and the `Range` of a
//! download; and the `ETag` of responses.
//!
//! A condition must be checked in the transaction that makes the change. All of a user's transactions are opened by
//! [`App::tenant`](crate::app::App::tenant) and [`App::organization`](crate::app::App::organization), so conditions are
//! checked there, once for all handlers: [`hold`] locks the row that the path names and compares its version. Of two
//! changes with the same version in `If-Match`, the second waits for the lock, finds another version, and is refused.
//!
//! An `ETag` is `"version"` or `"version.digest"`. The version is the row's ([`attune_store::version`]), and is
//! compared with `If-Match`. The digest is that of the body: a response may contain more than its row, such as a
//! remaining time, and `If-None-Match` must not report such a response as unchanged. An object without versions has
//! only the digest.

use std::sync::{Arc, Mutex, PoisonError};

use attune_store::{
    adapters::base_model::hex,
    db::Tenant,
    error::StoreError,
    idempotency::{self, Claim},
    version::{self, Thing},
};
use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::future::Either;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::{error::ApiError, http::request_context};

/// The paths whose parameters name an object with versions. Each includes the paths below it, unless an earlier line
/// matches them.
const THINGS: [(&str, Thing); 13] = [
    ("/v1/fine_tuning/jobs/{job_id}", Thing::Job),
    ("/v1/files/{file_id}", Thing::File),
    ("/v1/uploads/{upload_id}", Thing::Upload),
    ("/v1/batches/{batch_id}", Thing::Batch),
    ("/v1/models/{model}", Thing::Adapter),
    ("/v1/adapters/{adapter}/aliases/{alias}", Thing::Alias),
    ("/v1/adapters/{adapter}", Thing::Adapter),
    ("/v1/webhook_endpoints/{webhook_endpoint_id}", Thing::WebhookEndpoint),
    ("/v1/budget", Thing::Budget),
    ("/v1/organization/projects/{project_id}/api_keys/{key_id}", Thing::ApiKey),
    ("/v1/organization/projects/{project_id}/users/{user_id}", Thing::ProjectUser),
    ("/v1/organization/projects/{project_id}", Thing::Project),
    ("/v1/organization/users/{user_id}", Thing::User),
];

/// The maximum length of a response with an `ETag`, in bytes. A longer one is an internal error; no single object is
/// that long.
const TAGGED_BYTES: usize = 1 << 20;

/// The number of bytes of a body's digest in an `ETag`.
const DIGEST_BYTES: usize = 12;

tokio::task_local! {
    static CONDITIONS: Arc<Conditions>;
}

/// The conditions of one request.
#[derive(Debug)]
struct Conditions {
    thing: Option<(Thing, Vec<String>)>,
    /// The tags of `If-Match`.
    wanted: Option<Vec<String>>,
    claim: Option<Claim>,
    /// True if the request creates the object when it does not exist.
    makes: bool,
    /// True if the response has the object's version in its `ETag`.
    shows: bool,
    /// The `Range` header, and the tag of its `If-Range`.
    range: Option<(String, Option<String>)>,
    /// The object's version when the request's transaction began.
    seen: Mutex<Option<String>>,
}

/// The conditions that a transaction checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demands {
    /// Preconditions and `Idempotency-Key`: the transaction makes the change.
    All,
    /// Preconditions only: the transaction comes before the one that makes the change.
    Preconditions,
    /// `Idempotency-Key` only: the transaction makes the change, and an earlier one has checked the preconditions.
    IdempotencyKey,
}

/// Returns `future` with the conditions and the origin of the current request, for a separate task.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let future = request_context::carry(future);
    match CONDITIONS.try_with(Arc::clone) {
        Ok(conditions) => Either::Left(CONDITIONS.scope(conditions, future)),
        Err(_) => Either::Right(future),
    }
}

/// Checks the conditions of a user's request, in a transaction that was just opened for it.
///
/// # Errors
/// [`ApiError::PreconditionFailed`]: the row has another version. [`ApiError::Conflict`]: another request has taken
/// over the `Idempotency-Key`.
pub async fn hold(tx: &mut PgConnection, tenant: Tenant, demands: Demands) -> Result<(), ApiError> {
    let Ok(conditions) = CONDITIONS.try_with(Arc::clone) else { return Ok(()) };
    if let Some(claim) = conditions.claim.as_ref().filter(|_| demands != Demands::Preconditions) {
        idempotency::mark(tx, claim).await.map_err(|error| match error {
            StoreError::Stale => ApiError::Conflict("The Idempotency-Key was taken over by another request.".into()),
            other => other.into(),
        })?;
    }
    let Some((thing, names)) = conditions.thing.as_ref().filter(|_| demands != Demands::IdempotencyKey) else {
        return Ok(());
    };
    if let Some(wanted) = &conditions.wanted {
        match version::lock(tx, tenant, *thing, names).await? {
            Some(current) if matches(wanted, &current) => {}
            // The handler reports a missing object, as it does for requests without a condition.
            None if !conditions.makes => {}
            current => return Err(ApiError::PreconditionFailed { current: current.map(|tag| format!("\"{tag}\"")) }),
        }
    } else if conditions.shows {
        let current = version::of(tx, tenant, *thing, names).await?;
        *conditions.seen.lock().unwrap_or_else(PoisonError::into_inner) = current;
    }
    Ok(())
}

/// Returns the requested range of the content with this tag; `None` for all of it, also if `If-Range` names other
/// content.
pub fn range(tag: &str) -> Option<String> {
    let conditions = CONDITIONS.try_with(Arc::clone).ok()?;
    let (range, of) = conditions.range.as_ref()?;
    of.as_ref().is_none_or(|of| of == tag).then(|| range.clone())
}

/// Reads a request's conditions, and adds the `ETag` to its response.
pub async fn keep(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let names = parameters(&mut parts).await;
    let conditions = match read(&parts, &path, names) {
        Ok(conditions) => Arc::new(conditions),
        Err(refused) => return refused.into_response(),
    };
    let looks = parts.method == Method::GET;
    let known = looks.then(|| tags(&parts.headers, &header::IF_NONE_MATCH)).flatten();
    let request = Request::from_parts(parts, body);
    let mut response = CONDITIONS.scope(Arc::clone(&conditions), next.run(request)).await;
    if !looks || response.status() != StatusCode::OK {
        return response;
    }
    if conditions.shows || path.ends_with('}') {
        let version = conditions.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        response = tagged(response, version).await;
    }
    unchanged(response, known)
}

fn read(parts: &Parts, path: &str, mut names: Vec<String>) -> Result<Conditions, ApiError> {
    let thing = THINGS.iter().find(|(of, _)| belongs(path, of)).map(|(of, thing)| {
        names.truncate(of.matches('{').count());
        (*thing, names)
    });
    let looks = parts.method == Method::GET;
    let shows = looks && THINGS.iter().any(|(of, _)| *of == path);
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let range = text(header::RANGE).filter(|_| looks).map(|range| (range, text(header::IF_RANGE)));
    let wanted = wanted(&parts.headers, thing.is_some(), looks)?;
    let claim = parts.extensions.get::<Claim>().cloned();
    let makes = parts.method == Method::PUT;
    Ok(Conditions { thing, wanted, claim, makes, shows, range, seen: Mutex::new(None) })
}

/// Returns whether `path` is `of` or a path below it.
fn belongs(path: &str, of: &str) -> bool {
    path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

async fn parameters(parts: &mut Parts) -> Vec<String> {
    let parameters = RawPathParams::from_request_parts(parts, &()).await;
    parameters.iter().flatten().map(|(_, value)| value.to_owned()).collect()
}

/// Returns the tags of `If-Match`; a condition that nothing would check is refused.
fn wanted(headers: &HeaderMap, has_versions: bool, looks: bool) -> Result<Option<Vec<String>>, ApiError> {
    let refused = |header: &HeaderName, message: &str| ApiError::Invalid {
        param: Some(header.to_string()),
        code: "precondition_not_supported",
        message: message.into(),
    };
    if !looks && headers.contains_key(header::IF_NONE_MATCH) {
        return Err(refused(
            &header::IF_NONE_MATCH,
            "If-None-Match is only supported for GET. To change an object, send If-Match.",
        ));
    }
    if headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        let message = "If-Unmodified-Since is not supported: times are too coarse. Send If-Match with the ETag.";
        return Err(refused(&header::IF_UNMODIFIED_SINCE, message));
    }
    let tags = tags(headers, &header::IF_MATCH);
    if tags.is_some() && !has_versions {
        return Err(refused(
            &header::IF_MATCH,
            "If-Match is not supported for this path: it names no object with an ETag.",
        ));
    }
    Ok(tags)
}

/// Returns all tags of a header, as they are written; `None` if the header is missing.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let tags = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    Some(tags.map(|tag| tag.trim().to_owned()).collect())
}

/// Returns whether one of the tags matches this version. A weak tag never matches. Source: RFC 9110, §13.1.1.
fn matches(tags: &[String], version: &str) -> bool {
    tags.iter().any(|tag| {
        let inner = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        tag == "*" || inner.is_some_and(|inner| inner.split('.').next() == Some(version))
    })
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
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_tag_matches_by_its_version_alone() {
        for (line, is_match) in [
            ("\"7\"", true),
            ("\"7.abc\"", true),
            ("\"6\", \"7.old\"", true),
            ("*", true),
            ("\"77\"", false),
            ("W/\"7\"", false),
            ("7", false),
            ("\"abc.7\"", false),
            ("", false),
        ] {
            let wanted = wanted(&headers(header::IF_MATCH, &[line]), true, false).unwrap().unwrap();
            assert_eq!(matches(&wanted, "7"), is_match, "{line}");
        }
        let two = wanted(&headers(header::IF_MATCH, &["\"1\"", "\"7\""]), true, false).unwrap().unwrap();
        assert!(matches(&two, "7"), "two lines are one list");
    }

    #[test]
    fn a_condition_that_nothing_checks_is_refused() {
        assert!(wanted(&headers(header::IF_MATCH, &["\"7\""]), false, false).is_err());
        assert!(wanted(&headers(header::IF_NONE_MATCH, &["*"]), true, false).is_err());
        assert!(wanted(&headers(header::IF_UNMODIFIED_SINCE, &["Tue, 24 Nov 2026 00:00:00 GMT"]), true, true).is_err());
        assert_eq!(wanted(&HeaderMap::new(), false, false).unwrap(), None);
    }

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

    /// Every path that changes an object which its first parameter names is in [`THINGS`], or here with its reason.
    #[test]
    fn every_thing_that_can_be_changed_has_versions() {
        let without: [(&str, &str); 2] = [
            ("/v1/base_models/", "a base model and its blobs are never changed"),
            ("/v1/fine_tuning/checkpoints/", "a permission is created and deleted, never changed"),
        ];
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/openapi.json"));
        let document: Value = serde_json::from_str(&text.unwrap()).unwrap();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let changes = ["put", "post", "patch", "delete"].iter().any(|method| operations.get(method).is_some());
            let known = THINGS.iter().any(|(of, _)| belongs(path, of))
                || without.iter().any(|(start, _)| path.starts_with(start));
            assert!(!changes || !path.contains('{') || known, "{path} changes something that has no versions");
        }
    }
}
