//! The replica's HTTP server: `POST /generate` and `GET /healthz`.
//!
//! A caller with the bearer token gets status 200 and a stream of events, one JSON object per line; failures are events
//! too. When the client disconnects, the body is dropped, which cancels the request.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
};

use attune_domain::serve::{GenerateEvent, GenerateRequest};
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{answering::answer::answer, app::App};

/// The maximum size of a request body in bytes. The platform has smaller limits of its own.
const MAX_BODY: usize = 32 << 20;
/// The number of events buffered for a slow client. When the buffer is full, the request's task waits; the engine
/// continues.
const EVENTS_AHEAD: usize = 64;

/// Returns the routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/generate", post(generate))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(app.clone(), only_the_platform))
        .route("/healthz", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .layer(from_fn(attune_inbound::measure))
        .with_state(app)
}

async fn only_the_platform(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let shown = shown.strip_prefix(b"Bearer ").unwrap_or_default();
    if shown.ct_eq(app.token.expose_secret().as_bytes()).into() {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(serde_json::json!({ "error": "wrong token" }))).into_response()
    }
}

async fn generate(State(app): State<Arc<App>>, Json(request): Json<GenerateRequest>) -> Response {
    let (out, events) = mpsc::channel(EVENTS_AHEAD);
    let counted = Counted::new(app.clone());
    app.requests.spawn(async move { answer(&counted.0, request, out).await });
    let lines = ReceiverStream::new(events).map(|event| Ok::<_, Infallible>(line(&event)));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn line(event: &GenerateEvent) -> String {
    serde_json::to_string(event).map_or_else(|_| String::new(), |text| text + "\n")
}

/// Counts a request as active until it is dropped, however the request ends.
struct Counted(Arc<App>);

impl Counted {
    fn new(app: Arc<App>) -> Self {
        app.active.fetch_add(1, Ordering::Relaxed);
        Self(app)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
