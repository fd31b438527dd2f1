//! The replica's HTTP server: `POST /generate` and `GET /healthz`.
//!
//! A caller with the bearer token gets status 200 and a stream of events, one JSON object per line; failures are events
//! too. When the client disconnects, the body is dropped, which cancels the request.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use crate::{answering::answer::answer, app::App};

/// The maximum size of a request body in bytes. The platform has smaller limits of its own.
const MAX_BODY: usize = 32 << 20;
/// The number of events buffered for a slow client. When the buffer is full, the request's task waits; the engine
/// continues.
const EVENTS_AHEAD: usize = 64;

/// A process that answers requests: a replica with its own engine, or a bridge to another one.
pub trait Answers: Send + Sync + 'static {
    /// Returns the bearer token that callers must send.
    fn token(&self) -> &SecretString;

    /// Returns the tasks of requests in progress.
    fn requests(&self) -> &TaskTracker;

    /// Returns the number of requests in progress.
    fn active(&self) -> &AtomicU64;

    /// Answers `request` into `out`. Returns early if the receiver is dropped.
    fn answer(&self, request: GenerateRequest, out: mpsc::Sender<GenerateEvent>) -> impl Future<Output = ()> + Send;
}

impl Answers for App {
    fn token(&self) -> &SecretString {
        &self.token
    }

    fn requests(&self) -> &TaskTracker {
        &self.requests
    }

    fn active(&self) -> &AtomicU64 {
        &self.active
    }

    async fn answer(&self, request: GenerateRequest, out: mpsc::Sender<GenerateEvent>) {
        answer(self, request, out).await;
    }
}

/// Returns the routes.
pub fn router<A: Answers>(app: Arc<A>) -> Router {
    Router::new()
        .route("/generate", post(generate::<A>))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(app.clone(), only_the_platform::<A>))
        .route("/healthz", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .layer(from_fn(attune_inbound::measure))
        .with_state(app)
}

async fn only_the_platform<A: Answers>(State(app): State<Arc<A>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let shown = shown.strip_prefix(b"Bearer ").unwrap_or_default();
    if shown.ct_eq(app.token().expose_secret().as_bytes()).into() {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(serde_json::json!({ "error": "wrong token" }))).into_response()
    }
}

async fn generate<A: Answers>(State(app): State<Arc<A>>, Json(request): Json<GenerateRequest>) -> Response {
    let (out, events) = mpsc::channel(EVENTS_AHEAD);
    let counted = Counted::new(app.clone());
    app.requests().spawn(async move { counted.0.answer(request, out).await });
    let lines = ReceiverStream::new(events).map(|event| Ok::<_, Infallible>(line(&event)));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn line(event: &GenerateEvent) -> String {
    serde_json::to_string(event).map_or_else(|_| String::new(), |text| text + "\n")
}

/// Counts a request as active until it is dropped, however the request ends.
struct Counted<A: Answers>(Arc<A>);

impl<A: Answers> Counted<A> {
    fn new(app: Arc<A>) -> Self {
        app.active().fetch_add(1, Ordering::Relaxed);
        Self(app)
    }
}

impl<A: Answers> Drop for Counted<A> {
    fn drop(&mut self) {
        self.0.active().fetch_sub(1, Ordering::Relaxed);
    }
}
