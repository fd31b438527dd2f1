//! Batches with content that the database cannot store: they end, and do not delay the batches of other tenants.

use std::time::{Duration, Instant};

use attune_tests::{platform::Platform, tenant::Tenant};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// More than the number of batch workers of a scheduler; this many poisoned batches once blocked all of them.
const POISONED: usize = 6;

pub(super) async fn batch(tenant: &Tenant, endpoint: &str, lines: String) -> String {
    let file = tenant.upload("batch", "batch.jsonl", lines).await.unwrap();
    let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"});
    let (status, batch) = tenant.call(Method::POST, "/v1/batches", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{batch}");
    batch["id"].as_str().unwrap().to_owned()
}

/// Waits until the batch has ended.
pub(super) async fn ended(tenant: &Tenant, id: &str, within: Duration) -> Value {
    let begun = Instant::now();
    loop {
        let (status, view) = tenant.call(Method::GET, &format!("/v1/batches/{id}"), None).await.unwrap();
        assert_eq!(status, 200, "{view}");
        if ["completed", "failed", "expired", "cancelled"].contains(&view["status"].as_str().unwrap()) {
            return view;
        }
        assert!(begun.elapsed() < within, "{view}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a04_a_batch_that_cannot_be_refused_in_writing_ends_and_delays_no_other() {
    let platform = Platform::start().unwrap();
    let (attacker, victim) =
        (Tenant::new(&platform, "attacker").await.unwrap(), Tenant::new(&platform, "victim").await.unwrap());
    let line = |extra: &str| {
        format!(
            "{{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \
             \"body\": {{\"model\": \"none\", \"messages\": []}}{extra}}}"
        )
    };
    let mut poisoned = Vec::new();
    for _ in 0..POISONED {
        poisoned.push(batch(&attacker, "/v1/chat/completions", line(r#", "x\u0000": 1"#)).await);
    }
    let sound = batch(&victim, "/v1/chat/completions", line("")).await;
    let done = ended(&victim, &sound, Duration::from_secs(20)).await;
    assert_eq!((&done["status"], &done["request_counts"]["failed"]), (&json!("completed"), &json!(1)), "{done}");
    for id in &poisoned {
        let done = ended(&attacker, id, Duration::from_secs(20)).await;
        let defect = &done["errors"]["data"][0];
        assert_eq!((&done["status"], &defect["param"]), (&json!("failed"), &json!("x\u{fffd}")), "{done}");
    }
    platform.stop(Signal::SIGTERM).unwrap();
}
