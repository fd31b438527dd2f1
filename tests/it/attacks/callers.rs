//! The callers in attack tests: projects with their own API keys, and another tenant that sends requests meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attune_tests::{
    platform::{Platform, client},
    tenant::Tenant,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Creates a project; returns its ID and an API key with all scopes except those of administration.
pub(crate) async fn project(platform: &Platform, name: &str) -> (String, String) {
    let made = Tenant::new(platform, name).await.unwrap();
    (made.project_id, made.api_key)
}

/// Creates another API key of the project.
pub(crate) async fn key(platform: &Platform, project: &str, name: &str) -> String {
    let path = format!("/v1/organization/projects/{project}/api_keys");
    let (status, made) = platform.call(Method::POST, &path, Some(json!({ "name": name }))).await.unwrap();
    assert_eq!(status, 200, "{made}");
    made["value"].as_str().unwrap().to_owned()
}

/// Sends a request with an API key; returns the status and the body. Status 0 is a connection error.
pub(crate) async fn ask(method: Method, url: String, key: String, body: Option<Value>) -> (u16, Value) {
    let mut request = client().request(method, url).bearer_auth(key).timeout(Duration::from_secs(60));
    if let Some(body) = body {
        request = request.json(&body);
    }
    match request.send().await {
        Ok(answer) => (answer.status().as_u16(), answer.json().await.unwrap_or_default()),
        Err(error) => (0, json!(error.to_string())),
    }
}

/// Another tenant's small requests, sent sequentially.
pub(crate) struct Pulse {
    going: Arc<AtomicBool>,
    beats: JoinHandle<(Duration, usize)>,
}

impl Pulse {
    pub(crate) fn start(platform: &Platform, path: &str, key: &str) -> Self {
        let going = Arc::new(AtomicBool::new(true));
        let (goes, url, key) = (going.clone(), format!("{}{path}", platform.url), key.to_owned());
        let beats = tokio::spawn(async move {
            let (mut worst, mut failed) = (Duration::ZERO, 0);
            while goes.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let (status, _) = ask(Method::GET, url.clone(), key.clone(), None).await;
                worst = worst.max(begun.elapsed());
                failed += usize::from(status != 200);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (worst, failed)
        });
        Self { going, beats }
    }

    /// Stops the requests; returns the longest latency and the number of failures.
    pub(crate) async fn end(self) -> (Duration, usize) {
        self.going.store(false, Ordering::Relaxed);
        self.beats.await.unwrap()
    }
}
