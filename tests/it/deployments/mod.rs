//! A deployment of two replicas on real processes: requests reach both, one of them is killed, and the pool goes to
//! zero and back.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use attune_tests::platform::Platform;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Settings with which a killed replica is noticed within seconds.
const SETTINGS: &str = "[leases]\nheartbeat_seconds = 1\nstale_after_seconds = 30\n";

/// The number of concurrent requests.
const REQUESTS: usize = 12;

fn serving(platform: &Platform) -> Vec<i32> {
    let all = platform.descendants().unwrap();
    all.into_iter().filter(|(_, command)| command.contains("attune-serving")).map(|(pid, _)| pid).collect()
}

/// Waits until the deployment has this many ready replicas and no others.
async fn until_ready(platform: &Platform, id: &str, ready: u64) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let shown = platform.json(&["deployments", "get", id]).unwrap();
        if shown["replicas"] == json!({"ready": ready, "starting": 0, "draining": 0}) {
            return shown;
        }
        assert!(Instant::now() < deadline, "{shown}\n{}", platform.folder().log());
        sleep(Duration::from_millis(300)).await;
    }
}

async fn chat(platform: &Platform) -> (u16, Value) {
    let ask = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    platform.call(Method::POST, "/v1/chat/completions", Some(ask)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_both_replicas_and_survive_the_end_of_one() {
    let platform = Platform::start_with(SETTINGS).unwrap();
    platform.import_tiny().unwrap();
    let create = ["deployments", "create", "--model", "tiny", "--min-replicas", "2", "--cooldown-seconds", "30"];
    let made = platform.json(&create).unwrap();
    assert_eq!((&made["max_replicas"], &made["quantization"]), (&json!(2), &json!("none")), "{made}");
    let id = made["id"].as_str().unwrap();
    let again = platform.json(&create).unwrap_err().to_string();
    assert!(again.contains("has a deployment of 'tiny'"), "{again}");
    until_ready(&platform, id, 2).await;

    // One of the two is suspended: the requests that it gets wait there, and the others are answered.
    let suspended = Pid::from_raw(serving(&platform)[0]);
    kill(suspended, Signal::SIGSTOP).unwrap();
    let asking = (0..REQUESTS).map(|_| chat(&platform));
    let answered = &AtomicUsize::new(0);
    let counted = asking.map(|asked| async move {
        let answer = asked.await;
        answered.fetch_add(1, Ordering::Relaxed);
        answer
    });
    let ending = async {
        sleep(Duration::from_secs(5)).await;
        let before = answered.load(Ordering::Relaxed);
        assert!(before > 0 && before < REQUESTS, "{before} answers, with one of two replicas suspended");
        kill(suspended, Signal::SIGKILL).unwrap();
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(counted), ending);
    for (status, answer) in answers {
        assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while serving(&platform).len() < 2 || serving(&platform).contains(&suspended.as_raw()) {
        assert!(Instant::now() < deadline, "no replica replaced the killed one\n{}", platform.folder().log());
        sleep(Duration::from_millis(300)).await;
    }
    let shown = until_ready(&platform, id, 2).await;
    assert!(shown["last_request_at"].is_number() && shown["idle"] == false, "{shown}");

    // Without a minimum the pool ends after its cooldown, and the next request starts it again.
    platform.json(&["deployments", "update", id, "--min-replicas", "0"]).unwrap();
    until_ready(&platform, id, 0).await;
    let (status, answer) = chat(&platform).await;
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    assert_eq!(serving(&platform).len(), 1);
    let deleted = platform.json(&["deployments", "delete", id]).unwrap();
    assert_eq!(deleted["deleted"], true);
    assert_eq!(chat(&platform).await.0, 200, "the model needs no deployment");
}
