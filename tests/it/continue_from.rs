//! Training that continues from an adapter, and the learning rate finder: through the API, the trainer and the command
//! line.

use std::time::Duration;

use attune_tests::{platform::Platform, tiny};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{create, job};

const JOBS: &str = "/v1/fine_tuning/jobs";

/// Returns the losses of a job's steps, in order.
async fn losses(platform: &Platform, id: &str) -> Vec<f64> {
    let path = format!("{JOBS}/{id}/events?limit=200");
    let (_, events) = platform.call(Method::GET, &path, None).await.unwrap();
    events["data"].as_array().unwrap().iter().rev().filter_map(|event| event["data"]["train_loss"].as_f64()).collect()
}

async fn refused(platform: &Platform, job: Value) -> Value {
    let (status, answer) = platform.call(Method::POST, JOBS, Some(job.clone())).await.unwrap();
    assert_eq!(status, 400, "{job}: {answer}");
    answer["error"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tuned_model_is_trained_further_and_a_learning_rate_is_found() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let first = create(&platform, job(&file)).await;
    let done = platform.ended(&first, Duration::from_secs(120)).await.unwrap();
    let model = done["fine_tuned_model"].as_str().unwrap().to_owned();
    let (_, adapter) = platform.call(Method::GET, &format!("/v1/adapters/{model}"), None).await.unwrap();
    let adapter = adapter["id"].as_str().unwrap().to_owned();

    what_contradicts_the_adapter_is_refused(&platform, &file, &model, &adapter).await;
    both_names_of_the_adapter_continue_it(&platform, &file, (&model, &adapter), &losses(&platform, &first).await).await;
    a_learning_rate_is_found_and_its_job_cancelled(&platform, &file).await;
}

async fn what_contradicts_the_adapter_is_refused(platform: &Platform, file: &str, model: &str, adapter: &str) {
    for (field, value, param) in [
        ("adapter", json!({"rank": 4}), "adapter.rank"),
        ("adapter", json!({"use_dora": true}), "adapter.use_dora"),
        ("continue_from", json!("adapter_00000000000000000000000000000000"), "continue_from"),
    ] {
        let mut job = json!({"model": model, "training_file": file});
        job[field] = value;
        assert_eq!(refused(platform, job).await["param"], param);
    }
    let other = json!({"model": "tiny", "training_file": file, "continue_from": adapter, "adapter": {"lora_alpha": 3}});
    let error = refused(platform, other).await;
    assert_eq!((&error["param"], &error["code"]), (&json!("adapter.lora_alpha"), &json!("invalid_value")), "{error}");
}

async fn both_names_of_the_adapter_continue_it(
    platform: &Platform,
    file: &str,
    (model, adapter): (&str, &str),
    before: &[f64],
) {
    let mut by_id = job(file);
    (by_id["continue_from"], by_id["suffix"]) = (json!(adapter), json!("further"));
    let mut by_name = by_id.clone();
    by_name.as_object_mut().unwrap().remove("continue_from");
    by_name["model"] = json!(model);
    for asked in [by_id, by_name] {
        let id = create(platform, asked).await;
        let (status, answer) = platform.call(Method::DELETE, &format!("/v1/models/{model}"), None).await.unwrap();
        assert_eq!(status, 409, "the adapter goes while a job needs it: {answer}");
        let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
        assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
        assert_eq!((&done["continue_from"], &done["model"]), (&json!(adapter), &json!("tiny")));
        assert_eq!(done["adapter"]["rank"], 16);
        let first = losses(platform, &id).await[0];
        assert!(first < before[0] / 2.0, "it restarted from the base: {first} after {before:?}");
    }
}

async fn a_learning_rate_is_found_and_its_job_cancelled(platform: &Platform, file: &str) {
    let found = platform.json(&["lr-find", "--model", "tiny", "--training-file", file, "--epochs", "100"]).unwrap();
    let rate = found["learning_rate"].as_f64().unwrap();
    assert!(rate > 0.0 && found["curve"].as_array().unwrap().len() > 1, "{found}");
    assert!(!found["reason"].as_str().unwrap().is_empty(), "{found}");
    let id = found["fine_tuning_job"].as_str().unwrap();
    let job = platform.ended(id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(job["status"], "cancelled", "{job}");
    assert_eq!((&job["trainer"]["learning_rate"], &job["trainer"]["learning_rate_auto"]), (&json!(rate), &json!(true)));
}
