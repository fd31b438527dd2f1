//! Bursts of requests that once acquired a second connection while they held one: with a pool of two connections, the
//! minimum, no request deadlocks.

use std::time::Duration;

use attune_tests::{platform::Platform, tenant::Tenant, tiny};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::callers::{Pulse, ask};

/// The number of concurrent requests.
const BURST: usize = 48;

/// The wait that counts as a stall; a deadlocked pool stalls until its time-out of 30 s.
const STALL: Duration = Duration::from_secs(15);

/// Sends the same request [`BURST`] times concurrently; returns the number of requests that failed or stalled, with
/// those of another tenant included.
async fn burst(platform: &Platform, (path, key): (&str, &str), body: &Value, bystander: &str) -> usize {
    let pulse = Pulse::start(platform, "/v1/files?limit=1", bystander);
    let url = format!("{}{path}", platform.url);
    let asked = (0..BURST).map(|_| tokio::spawn(ask(Method::POST, url.clone(), key.to_owned(), Some(body.clone()))));
    let answers: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    let (worst, failed) = pulse.end().await;
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    println!("{path}: {} of {BURST} failed; a bystander waited {worst:?} at worst, {failed} failed", refused.len());
    if let Some((status, answer)) = refused.first() {
        println!("the first: {status} {answer}\n{}", platform.folder().log());
    }
    refused.len() + failed + usize::from(worst > STALL)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a05_and_attack_a05b_bursts_through_a_tiny_pool_do_not_stall() {
    let platform = Platform::start_with("[database]\nmax_connections = 2\n").unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(8)).unwrap();
    let job = json!({"model": "tiny", "training_file": file, "trainer": {"max_steps": 2, "checkpoint_every_steps": 1}});
    let (status, made) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    assert_eq!(status, 200, "{made}");
    let job = made["id"].as_str().unwrap();
    let done = platform.ended(job, Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    assert_eq!(done["result_files"].as_array().map(Vec::len), Some(1), "a publish has its result file: {done}");
    let path = format!("/v1/fine_tuning/jobs/{job}/checkpoints");
    let (_, checkpoints) = platform.call(Method::GET, &path, None).await.unwrap();
    let checkpoint = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap().to_owned();
    let friend = Tenant::new(&platform, "friend").await.unwrap();
    let bystander = Tenant::new(&platform, "bystander").await.unwrap().api_key;

    let permissions = format!("/v1/fine_tuning/checkpoints/{checkpoint}/permissions");
    let owner = platform.api_key.clone();
    let mut stalls =
        burst(&platform, (&permissions, &owner), &json!({"project_ids": [friend.project_id]}), &bystander).await;

    let chat = json!({"model": checkpoint, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    let url = format!("{}/v1/chat/completions", platform.url);
    let (status, alone) = ask(Method::POST, url, friend.api_key.clone(), Some(chat.clone())).await;
    assert_eq!(status, 200, "{alone}\n{}", platform.folder().log());
    stalls += burst(&platform, ("/v1/chat/completions", &friend.api_key), &chat, &bystander).await;

    println!("FIGURE pool_stalls {stalls}");
    assert_eq!(stalls, 0);
    assert!(!platform.folder().log().contains("requested a second connection"), "{}", platform.folder().log());
}
