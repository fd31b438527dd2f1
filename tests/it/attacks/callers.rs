//! The callers in attack tests: requests in tasks of their own, and another tenant that sends requests meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attune_tests::platform::{Platform, call};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

/// The maximum duration of a request.
const LONGEST: Duration = Duration::from_secs(60);

/// Sends a request with an API key; returns the status and the body. Status 0 is a connection error or a time-out.
pub(crate) async fn ask(method: Method, url: String, key: String, body: Option<Value>) -> (u16, Value) {
    match timeout(LONGEST, call(method, url, &key, body)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => (0, json!(error.to_string())),
        Err(elapsed) => (0, json!(elapsed.to_string())),
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
