//! A job that is paused and resumed, compared with one that is not interrupted; and its event stream, resumed after a
//! disconnect.

use std::time::Duration;

use attune_tests::{
    platform::{Platform, client},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{create, job};

const JOBS: &str = "/v1/fine_tuning/jobs";

async fn asked(platform: &Platform, id: &str, what: &str) -> Value {
    let (status, view) = platform.call(Method::POST, &format!("{JOBS}/{id}/{what}"), None).await.unwrap();
    assert_eq!(status, 200, "{view}");
    view
}

/// Returns the files of a job's adapter with their digests, except the two files that name the job.
async fn adapter_files(platform: &Platform, job: &Value) -> Value {
    assert_eq!(job["status"], "succeeded", "{job}\n{}", platform.folder().log());
    let model = job["fine_tuned_model"].as_str().unwrap();
    let (_, adapter) = platform.call(Method::GET, &format!("/v1/adapters/{model}"), None).await.unwrap();
    let mut files = adapter["files"].as_array().unwrap().clone();
    files.retain(|file| file["name"] != "README.md" && file["name"] != "attune_manifest.json");
    assert!(files.iter().any(|file| file["name"] == "adapter_model.safetensors"), "{adapter}");
    files.into()
}

/// Returns the IDs of the events of a stream, until there are `enough` of them or the stream ends.
async fn streamed(platform: &Platform, id: &str, last: Option<&str>, enough: usize) -> Vec<String> {
    let mut request =
        client().get(format!("{}{JOBS}/{id}/events?stream=true", platform.url)).bearer_auth(&platform.api_key);
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last);
    }
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let ids = |text: &str| -> Vec<String> {
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
    };
    while let Some(piece) = answer.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
        if ids(&text).len() >= enough {
            break;
        }
    }
    let mut found = ids(&text);
    found.truncate(enough);
    found
}

/// Lists the IDs of all events, oldest first, page by page.
async fn listed(platform: &Platform, id: &str) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("{JOBS}/{id}/events?limit=50{after}");
        let (status, page) = platform.call(Method::GET, &path, None).await.unwrap();
        assert_eq!(status, 200, "{page}");
        found.extend(page["data"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()));
        if page["has_more"] != true {
            found.reverse();
            return found;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_gives_the_bytes_of_one_that_was_not_and_its_events_are_followed_over_a_cut() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let mut asked_for = job(&file);
    asked_for["method"]["supervised"]["hyperparameters"]["n_epochs"] = json!(100);
    asked_for["trainer"]["checkpoint_every_steps"] = json!(20);
    asked_for["adapter"]["lora_dropout"] = json!(0.1);
    let calm = create(&platform, asked_for.clone()).await;
    // This job is queued behind the other one, and is paused while it waits.
    let paused = create(&platform, asked_for).await;
    assert_eq!(asked(&platform, &paused, "pause").await["status"], "paused");
    let calm = platform.ended(&calm, Duration::from_secs(180)).await.unwrap();

    let view = asked(&platform, &paused, "resume").await;
    assert!(["queued", "validating_files"].contains(&view["status"].as_str().unwrap()), "{view}");
    for steps in [8, 90] {
        let enough = |job: &Value| job["steps_done"].as_u64().unwrap_or(0) >= steps;
        platform.job_until(&paused, Duration::from_secs(120), enough).await.unwrap();
        asked(&platform, &paused, "pause").await;
        asked(&platform, &paused, "pause").await;
        let is_paused = |job: &Value| job["status"] == "paused";
        let view = platform.job_until(&paused, Duration::from_secs(60), is_paused).await.unwrap();
        assert_eq!((&view["pause_reason"], &view["finished_at"]), (&json!("asked"), &Value::Null), "{view}");
        if steps == 8 {
            asked(&platform, &paused, "resume").await;
        }
    }
    let first = streamed(&platform, &paused, None, 40).await;
    platform.json(&["jobs", "resume", &paused]).unwrap();
    let rest = streamed(&platform, &paused, Some(&first[39]), usize::MAX).await;
    let done = platform.ended(&paused, Duration::from_secs(180)).await.unwrap();
    assert_eq!((&done["status"], &done["attempts"]), (&json!("succeeded"), &json!(3)), "{done}");
    assert_eq!([first, rest].concat(), listed(&platform, &paused).await, "the stream is the list");
    assert_eq!(adapter_files(&platform, &done).await, adapter_files(&platform, &calm).await);

    let (status, refused) = platform.call(Method::POST, &format!("{JOBS}/{paused}/pause"), None).await.unwrap();
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("job_has_ended")), "{refused}");
    let told = platform.attune(&["jobs", "events", &paused, "--follow"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).lines().count(), listed(&platform, &paused).await.len());
}
