//! The middleware of every request: an ID, a span, a log line, the headers of the response, and the handling of panics.

use std::time::Instant;

use attune_process::telemetry;
use axum::{
    body::Body,
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, uri::PathAndQuery},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use crate::error::ApiError;

/// The header that contains the request's ID.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The header in which a caller may choose the request's ID.
pub const CHOSEN: HeaderName = HeaderName::from_static("x-client-request-id");

/// The maximum length of a chosen ID, in bytes. Source: OpenAI's API reference, "Debugging requests".
const CHOSEN_BYTES: usize = 512;

/// The header that contains the processing time, in milliseconds.
const TOOK: HeaderName = HeaderName::from_static("openai-processing-ms");

/// The headers of every response, unless the handler sets them itself.
const ALWAYS: [(HeaderName, &str); 7] = [
    // The version of the REST API. Source: OpenAI's API reference, "Debugging requests".
    (HeaderName::from_static("openai-version"), "2020-10-01"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // Only the caller may cache a response, and must revalidate it before each use.
    (header::CACHE_CONTROL, "private, no-cache"),
];

/// A request's ID: in the response's header, in every log line, and in the request to a replica.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Sets the request's ID and span, logs its outcome, and adds the response's headers.
pub async fn trace(mut request: Request, next: Next) -> Response {
    let (id, refused) = match id(request.headers()) {
        Ok(id) => (id, None),
        Err(error) => (fresh(), Some(error)),
    };
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let empty = tracing::field::Empty;
    let span = tracing::info_span!("request", request.id = id, method = %request.method(), route,
        project.id = empty, run.id = empty, replica.id = empty);
    if let Some(parent) = request.headers().get(telemetry::TRACEPARENT).and_then(|value| value.to_str().ok()) {
        telemetry::continue_trace(&span, parent);
    }
    request.extensions_mut().insert(RequestId(id.clone()));
    let began = Instant::now();
    let noted = async {
        let response = match refused {
            Some(error) => error.into_response(),
            None => next.run(request).await,
        };
        let (status, ms) = (response.status().as_u16(), milliseconds(began));
        tracing::debug!(status, ms, "answered {status} after {ms} ms");
        response
    };
    let mut response = noted.instrument(span).await;
    put_headers(response.headers_mut(), &id, milliseconds(began));
    response
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn fresh() -> String {
    format!("req_{}", uuid::Uuid::new_v4().simple())
}

/// Returns the ID that the caller chose, or a new one.
fn id(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(chosen) = headers.get(CHOSEN) else { return Ok(fresh()) };
    let plain = |text: &&str| (1..=CHOSEN_BYTES).contains(&text.len());
    chosen.to_str().ok().filter(plain).map(str::to_owned).ok_or_else(|| ApiError::Invalid {
        param: Some(CHOSEN.to_string()),
        code: "invalid_client_request_id",
        message: format!("Invalid X-Client-Request-Id: it must have 1 to {CHOSEN_BYTES} visible ASCII characters."),
    })
}

fn put_headers(headers: &mut HeaderMap, id: &str, ms: u64) {
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers.insert(TOOK, HeaderValue::from(ms));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(HEADER, id);
    }
}

/// Normalizes a request before routing: slashes at the end of the path are removed, and `OPTIONS` is answered with the
/// allowed methods.
pub async fn normalize(mut request: Request, next: Next) -> Response {
    if let Some(shorter) = without_last_slash(request.uri()) {
        *request.uri_mut() = shorter;
    }
    let asks_for_methods = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    if asks_for_methods && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Refuses a path with U+0000, which no name contains and PostgreSQL does not accept.
pub async fn plain_path(request: Request, next: Next) -> Response {
    if request.uri().path().contains("%00") {
        return no_such_route(request.method().clone(), request.uri().clone()).await.into_response();
    }
    next.run(request).await
}

fn without_last_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if path.len() < 2 || !path.ends_with('/') {
        return None;
    }
    let path = path.trim_end_matches('/');
    let path = if path.is_empty() { "/" } else { path };
    let whole = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(whole).ok()?);
    Uri::from_parts(parts).ok()
}

/// Returns the response of a handler that panicked.
pub fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    ApiError::internal(format!("a handler panicked: {}", text.unwrap_or_default())).into_response()
}

/// Returns the error for a path without a route.
pub async fn no_such_route(method: Method, uri: Uri) -> ApiError {
    ApiError::NoSuchRoute { method: method.to_string(), path: uri.path().to_owned() }
}

/// Returns the error for a method that the path does not support.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method: method.to_string(), path: uri.path().to_owned() }
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn broken() -> &'static str {
        panic!("oh")
    }

    async fn answer(method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let inner = Router::new()
            .route("/v1/things", get(|| async { "things" }))
            .route("/v1/things/{name}", get(|| async { "a thing" }))
            .route("/v1/panic", get(broken))
            .fallback(no_such_route)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(from_fn(plain_path))
            .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
            .layer(from_fn(trace));
        let router = Router::new().fallback_service(inner).layer(from_fn(normalize));
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn every_answer_has_an_id_and_the_headers() {
        for (path, status) in [("/v1/things", 200), ("/v1/none", 404), ("/v1/panic", 500)] {
            let response = answer("GET", path, &[]).await;
            assert_eq!(response.status().as_u16(), status, "{path}");
            let id = response.headers()[HEADER].to_str().unwrap();
            assert!(id.starts_with("req_") && id.len() == 36, "{id}");
            for (name, value) in ALWAYS {
                assert_eq!(response.headers()[&name], value, "{path}");
            }
            assert!(response.headers().contains_key(TOOK));
        }
    }

    #[tokio::test]
    async fn a_chosen_id_is_taken_over_if_it_is_plain() {
        let response = answer("GET", "/v1/things", &[("x-client-request-id", "my id 1")]).await;
        assert_eq!(response.headers()[HEADER], "my id 1");
        for bad in ["", &"x".repeat(513), "é"] {
            let response = answer("GET", "/v1/things", &[("x-client-request-id", bad)]).await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{bad}");
            assert!(response.headers()[HEADER].to_str().unwrap().starts_with("req_"));
        }
    }

    #[tokio::test]
    async fn a_slash_at_the_end_changes_nothing() {
        for path in ["/v1/things/", "/v1/things//", "/v1/things/?a=b"] {
            assert_eq!(answer("GET", path, &[]).await.status(), StatusCode::OK, "{path}");
        }
        assert_eq!(answer("GET", "//", &[]).await.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_path_with_the_character_that_postgres_cannot_keep_is_unknown() {
        for (path, status) in [("a", 200), ("%01", 200), ("%00", 404), ("a%00b", 404), ("%00/", 404), ("%2500", 200)] {
            let response = answer("GET", &format!("/v1/things/{path}"), &[]).await;
            assert_eq!(response.status().as_u16(), status, "{path}");
        }
        assert_eq!(answer("GET", "/v1/things?name=%00", &[]).await.status(), StatusCode::OK, "only the path");
    }

    #[tokio::test]
    async fn the_methods_that_exist_are_listed() {
        let refused = answer("DELETE", "/v1/things", &[]).await;
        assert_eq!(
            (refused.status(), &refused.headers()[header::ALLOW]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET,HEAD".parse().unwrap())
        );
        let told = answer("OPTIONS", "/v1/things", &[]).await;
        assert_eq!(
            (told.status(), &told.headers()[header::ALLOW]),
            (StatusCode::NO_CONTENT, &"GET,HEAD".parse().unwrap())
        );
        assert_eq!(answer("OPTIONS", "/v1/none", &[]).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(answer("HEAD", "/v1/things", &[]).await.status(), StatusCode::OK);
    }
}
