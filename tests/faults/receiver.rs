//! A receiver of webhooks on this machine.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap};
use serde_json::Value;

/// A delivery that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The `webhook-id`, the same for each attempt.
    pub(crate) id: String,
    /// The event's type.
    pub(crate) kind: String,
    /// The ID of the object that the event is about.
    pub(crate) object: String,
}

/// A running receiver; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Receiver {
    arrived: Arc<Mutex<Vec<Delivery>>>,
    /// The address, `http://…`.
    pub(crate) url: String,
}

impl Receiver {
    /// Starts a receiver that accepts all deliveries.
    pub(crate) async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let receiver = Self { arrived: Arc::default(), url: format!("http://{}", listener.local_addr()?) };
        let app = Router::new().fallback(accept).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(receiver)
    }

    /// Returns the deliveries so far.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.arrived.lock().unwrap().clone()
    }
}

async fn accept(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) {
    let event: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let delivery = Delivery { id, kind: text(&event["type"]), object: text(&event["data"]["id"]) };
    receiver.arrived.lock().unwrap().push(delivery);
}
