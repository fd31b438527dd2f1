//! A job that resumes keeps its plan: it waits until the plan fits, and emits a warning if it can never fit again.

use std::{fs, path::PathBuf, time::Duration};

use attune_tests::platform::{Folder, Platform, text};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::create;

const JOBS: &str = "/v1/fine_tuning/jobs";

fn case() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/cases/15-resume-under-another-plan")
}

/// Starts a platform on `folder` whose node has this much memory.
fn start_with(folder: Folder, memory_bytes: u64) -> Platform {
    fs::write(folder.path("settings.toml"), format!("[local]\nmemory_bytes = {memory_bytes}\n")).unwrap();
    Platform::start_on(folder).unwrap()
}

/// Creates a job and pauses it after step 40; returns its ID.
async fn paused(platform: &Platform, asked: &Value) -> String {
    let id = create(platform, asked.clone()).await;
    let enough = |job: &Value| job["steps_done"].as_u64().unwrap_or(0) >= 40;
    platform.job_until(&id, Duration::from_secs(120), enough).await.unwrap();
    platform.json(&["jobs", "pause", &id]).unwrap();
    platform.job_until(&id, Duration::from_secs(60), |job| job["status"] == "paused").await.unwrap();
    id
}

/// Waits until the job has succeeded; returns the digest of the adapter's tensors.
async fn adapter(platform: &Platform, id: &str) -> String {
    let job = platform.ended(id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(job["status"], "succeeded", "{job}\n{}", platform.folder().log());
    let model = job["fine_tuned_model"].as_str().unwrap();
    let (_, adapter) = platform.call(Method::GET, &format!("/v1/adapters/{model}"), None).await.unwrap();
    let mut files = adapter["files"].as_array().unwrap().iter();
    let factors = files.find(|file| file["name"] == "adapter_model.safetensors").unwrap();
    factors["sha256"].as_str().unwrap().to_owned()
}

/// Returns the events with this code.
async fn coded(platform: &Platform, id: &str, code: &str) -> Vec<Value> {
    let path = format!("{JOBS}/{id}/events?limit=100");
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = platform.call(Method::GET, &format!("{path}{after}"), None).await.unwrap();
        assert_eq!(status, 200, "{page}");
        found.extend(page["data"].as_array().unwrap().iter().filter(|event| event["data"]["code"] == code).cloned());
        if page["has_more"] != true {
            return found;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_15_a_resumed_job_has_its_plan_or_says_that_it_has_another() {
    let platform = Platform::start().unwrap();
    platform.json(&["models", "import", text(&case().join("model")).unwrap(), "--name", "tiny"]).unwrap();
    let file = platform.upload(&fs::read_to_string(case().join("rows.jsonl")).unwrap()).unwrap();
    let mut asked: Value = serde_json::from_slice(&fs::read(case().join("job.json")).unwrap()).unwrap();
    asked["training_file"] = json!(file);
    let (status, estimate) =
        platform.call(Method::POST, "/v1/fine_tuning/estimates", Some(asked.clone())).await.unwrap();
    assert_eq!(status, 200, "{estimate}");
    let needed = estimate["memory"]["needed_bytes"].as_u64().unwrap();

    let undisturbed = create(&platform, asked.clone()).await;
    let undisturbed = adapter(&platform, &undisturbed).await;
    let control = paused(&platform, &asked).await;
    platform.json(&["jobs", "resume", &control]).unwrap();
    assert_eq!(adapter(&platform, &control).await, undisturbed, "nothing has changed");
    let (waiting, changed) = (paused(&platform, &asked).await, paused(&platform, &asked).await);

    // There is enough memory for the plan, but a replica uses a part of it.
    let platform = start_with(platform.stop(Signal::SIGTERM).unwrap(), needed + (400 << 20));
    let body = json!({"model": "tiny", "prompt": "Item", "max_tokens": 1});
    let (status, answer) = platform.call(Method::POST, "/v1/completions", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    platform.json(&["jobs", "resume", &waiting]).unwrap();
    let says_why = |job: &Value| job["waiting_reason"].as_str().is_some_and(|why| why.contains("micro_batch_size 7"));
    let view = platform.job_until(&waiting, Duration::from_secs(30), says_why).await.unwrap();
    assert_eq!(view["status"], "queued", "{view}");
    assert_eq!(adapter(&platform, &waiting).await, undisturbed, "the same bytes, though it had to wait");
    assert_eq!(coded(&platform, &waiting, "waiting_for_plan").await.len(), 1);
    assert!(coded(&platform, &waiting, "plan_changed").await.is_empty());

    // There can never be enough memory for the plan again.
    let platform = start_with(platform.stop(Signal::SIGTERM).unwrap(), needed - 1);
    platform.json(&["jobs", "resume", &changed]).unwrap();
    adapter(&platform, &changed).await;
    let warnings = coded(&platform, &changed, "plan_changed").await;
    assert_eq!((warnings.len(), &warnings[0]["level"]), (1, &json!("warn")), "{warnings:?}");
    let plan = |rows: u32| json!({"micro_batch_size": rows, "gradient_checkpointing": true});
    assert_eq!((&warnings[0]["data"]["before"], &warnings[0]["data"]["after"]), (&plan(7), &plan(3)), "{warnings:?}");
    let said = warnings[0]["message"].as_str().unwrap();
    assert!(said.contains("will not be bit-identical"), "{said}");
}
