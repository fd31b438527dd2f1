//! What every request goes through: an id, a span, a line in the log, and a net under panics.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method, Uri},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use crate::error::ApiError;

/// The header that tells a request's id.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id: in the answer's header, in every line of the log, in the request to a replica.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Gives the request its id and its span, and notes how it ended.
pub async fn trace(mut request: Request, next: Next) -> Response {
    let id = format!("req_{}", uuid::Uuid::new_v4().simple());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let empty = tracing::field::Empty;
    let span = tracing::info_span!("request", request.id = id, method = %request.method(), route,
        project.id = empty, run.id = empty, replica.id = empty);
    request.extensions_mut().insert(RequestId(id.clone()));
    let began = Instant::now();
    let noted = async {
        let response = next.run(request).await;
        let (status, ms) = (response.status().as_u16(), u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        tracing::debug!(status, ms, "answered {status} after {ms} ms");
        response
    };
    let mut response = noted.instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// Nothing has a name with U+0000 in it, and Postgres cannot even be asked for one.
pub async fn plain_path(request: Request, next: Next) -> Response {
    if request.uri().path().contains("%00") {
        return no_such_route(request.method().clone(), request.uri().clone()).await.into_response();
    }
    next.run(request).await
}

/// What a handler that panicked answers.
pub fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    ApiError::internal(format!("a handler panicked: {}", text.unwrap_or_default())).into_response()
}

/// No route has this path.
pub async fn no_such_route(method: Method, uri: Uri) -> ApiError {
    ApiError::NoSuchRoute { method: method.to_string(), path: uri.path().to_owned() }
}

/// The path is known, the method is not.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method: method.to_string(), path: uri.path().to_owned() }
}
