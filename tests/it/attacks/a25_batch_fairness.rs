//! Long batches of one project occupy all workers: another project's batch still gets a worker.

use std::time::Duration;

use attune_tests::{platform::Platform, tenant::Tenant};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use super::a04_poison_batch::{batch, ended};

const LINES: usize = 1500;

#[tokio::test(flavor = "multi_thread")]
async fn attack_a25_long_batches_of_one_project_do_not_hold_up_another() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let (attacker, victim) =
        (Tenant::new(&platform, "attacker").await.unwrap(), Tenant::new(&platform, "victim").await.unwrap());
    let lines = |count: usize, tokens: u32| -> String {
        let body =
            json!({"model": "tiny", "prompt": "hi", "max_tokens": tokens, "logit_bias": {"258": -100, "256": -100}});
        let line = |i| json!({"custom_id": format!("r{i}"), "method": "POST", "url": "/v1/completions", "body": body});
        (0..count).map(|i| line(i).to_string() + "\n").collect()
    };
    // Starts the serving process in advance, so that its start is not part of the measured wait.
    let warm = batch(&victim, "/v1/completions", lines(1, 1)).await;
    ended(&victim, &warm, Duration::from_secs(120)).await;
    let mut long = Vec::new();
    for _ in 0..4 {
        long.push(batch(&attacker, "/v1/completions", lines(LINES, 100)).await);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let short = batch(&victim, "/v1/completions", lines(1, 4)).await;
    let done = ended(&victim, &short, Duration::from_secs(40)).await;
    assert_eq!(done["request_counts"]["completed"], 1, "{done}");
    for id in &long {
        let (_, view) = attacker.call(Method::GET, &format!("/v1/batches/{id}"), None).await.unwrap();
        assert_ne!(view["status"], "completed", "the batch was too short for the test: {view}");
        attacker.call(Method::POST, &format!("/v1/batches/{id}/cancel"), None).await.unwrap();
    }
    for id in &long {
        let done = ended(&attacker, id, Duration::from_secs(60)).await;
        assert_eq!(done["status"], "cancelled", "{done}");
        assert_eq!(done["request_counts"]["failed"], 0, "a returned batch lost requests: {done}");
    }
    platform.stop(Signal::SIGTERM).unwrap();
}
