//! Faults while a job runs: a killed trainer, a killed scheduler, and a cancel in different states.

use std::time::Duration;

use attune_tests::{platform::Platform, tiny};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{create, job};

/// Returns a job that is long enough for a test to act while it runs.
fn long_job(file: &str) -> Value {
    let mut job = job(file);
    job["method"]["supervised"]["hyperparameters"]["n_epochs"] = json!(60);
    job["trainer"]["checkpoint_every_steps"] = json!(10);
    job
}

async fn with_job() -> (Platform, String) {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let id = create(&platform, long_job(&file)).await;
    (platform, id)
}

fn process(platform: &Platform, name: &str) -> Pid {
    let found: Vec<_> =
        platform.descendants().unwrap().into_iter().filter(|(_, command)| command.contains(name)).collect();
    assert_eq!(found.len(), 1, "{name}: {found:?}\n{}", platform.folder().log());
    Pid::from_raw(found[0].0)
}

async fn steps_done(platform: &Platform, id: &str, least: u64) -> Value {
    let enough = |job: &Value| job["steps_done"].as_u64().unwrap_or(0) >= least || job["finished_at"].is_number();
    platform.job_until(id, Duration::from_secs(60), enough).await.unwrap()
}

/// Checks that the job succeeds after `attempts` runs, and that there is exactly one adapter.
async fn one_adapter(platform: &Platform, id: &str, attempts: u64) {
    let done = platform.ended(id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    assert_eq!(done["attempts"].as_u64(), Some(attempts), "{done}");
    let (_, adapters) = platform.call(Method::GET, "/v1/adapters", None).await.unwrap();
    assert_eq!(adapters["data"].as_array().unwrap().len(), 1, "{adapters}");
    assert_eq!(done["steps_done"], done["total_steps"], "{done}");
}

/// Lists the messages of all events of a job, newest first, page by page.
pub(crate) async fn story(platform: &Platform, id: &str) -> Vec<String> {
    let (mut told, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/fine_tuning/jobs/{id}/events?limit=100{after}");
        let (status, page) = platform.call(Method::GET, &path, None).await.unwrap();
        assert_eq!(status, 200, "{page}");
        let events = page["data"].as_array().unwrap();
        told.extend(events.iter().map(|event| event["message"].as_str().unwrap().to_owned()));
        if page["has_more"] != true {
            return told;
        }
        after = format!("&after={}", events.last().unwrap()["id"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_trainer_is_followed_by_one_that_continues_from_the_checkpoint() {
    let (platform, id) = with_job().await;
    steps_done(&platform, &id, 25).await;
    kill(process(&platform, "attune-trainer"), Signal::SIGKILL).unwrap();
    one_adapter(&platform, &id, 2).await;
    let told = story(&platform, &id).await;
    assert!(told.iter().any(|message| message.contains("resumed from the last checkpoint")), "{told:?}");
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_trainer_saves_a_checkpoint_and_its_job_continues_from_it() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let mut long = long_job(&file);
    // None but the one of the interruption.
    long["trainer"]["checkpoint_every_steps"] = json!(100_000);
    let id = create(&platform, long).await;
    steps_done(&platform, &id, 15).await;
    kill(process(&platform, "attune-trainer"), Signal::SIGTERM).unwrap();
    one_adapter(&platform, &id, 2).await;
    let told = story(&platform, &id).await;
    for part in ["interrupted after step", "Checkpoint created at step", "resumed from the last checkpoint"] {
        assert!(told.iter().any(|message| message.contains(part)), "{part}: {told:?}");
    }
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_scheduler_takes_its_trainer_along_and_the_job_continues() {
    let (platform, id) = with_job().await;
    steps_done(&platform, &id, 15).await;
    kill(process(&platform, "attune-scheduler"), Signal::SIGKILL).unwrap();
    one_adapter(&platform, &id, 2).await;
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_and_leaves_no_trainer() {
    let (platform, id) = with_job().await;
    steps_done(&platform, &id, 5).await;
    let (status, view) = platform.call(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel"), None).await.unwrap();
    assert_eq!(status, 200, "{view}");
    let done = platform.ended(&id, Duration::from_secs(60)).await.unwrap();
    assert_eq!((&done["status"], &done["fine_tuned_model"]), (&json!("cancelled"), &Value::Null), "{done}");
    let (status, again) =
        platform.call(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel"), None).await.unwrap();
    assert_eq!(status, 400, "a final state takes no cancel: {again}");
    for _ in 0..100 {
        if !platform.descendants().unwrap().iter().any(|(_, command)| command.contains("attune-trainer")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a trainer is left: {:?}", platform.descendants().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_at_once_while_it_waits() {
    let (platform, running) = with_job().await;
    let file = platform.upload(&tiny::rows(8)).unwrap();
    steps_done(&platform, &running, 1).await;
    // The machine runs one job at a time, so the second job waits.
    let waiting = create(&platform, long_job(&file)).await;
    let (status, _) =
        platform.call(Method::POST, &format!("/v1/fine_tuning/jobs/{waiting}/cancel"), None).await.unwrap();
    assert_eq!(status, 200);
    let done = platform.ended(&waiting, Duration::from_secs(10)).await.unwrap();
    assert_eq!(done["status"], "cancelled", "{done}");
}
