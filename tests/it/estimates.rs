//! A job's estimate compared with the job: steps, tokens, the metrics file, usage.

use std::time::Duration;

use attune_tests::{
    platform::{Platform, client},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{create, get, job};

async fn estimate(platform: &Platform, job: &Value) -> Value {
    let (status, answer) = platform.call(Method::POST, "/v1/fine_tuning/estimates", Some(job.clone())).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_takes_what_its_estimate_stated_and_leaves_its_metrics_and_its_usage() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let mut asked = job(&file);
    asked["validation_file"] = json!(platform.upload(&tiny::rows(5)).unwrap());
    asked["compute"] = json!({"max_price_usd": 5});
    let before = estimate(&platform, &asked).await;
    assert_eq!((&before["pace"]["source"], &before["pace"]["runs"]), (&json!("assumed"), &json!(0)), "{before}");
    assert_eq!(before["duration_source"], "other_processor", "{before}");
    assert!(before["duration_note"].as_str().unwrap().starts_with("There was no run yet: "), "{before}");
    assert_eq!((&before["is_exact"], &before["waits"]), (&json!(true), &json!(false)), "{before}");
    assert!(get(&platform, "/v1/fine_tuning/jobs").await["data"].as_array().unwrap().is_empty(), "nothing is made");

    let id = create(&platform, asked.clone()).await;
    let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    for name in ["total_steps", "trained_tokens", "hyperparameters", "adapter", "trainer", "quantization", "seed"] {
        assert_eq!(before[name], done[name], "{name}");
    }
    assert_eq!(done["usage"]["trained_tokens"], done["trained_tokens"], "{done}");
    assert_eq!((&done["compute"]["max_price_usd"], &done["usage"]["cost_usd"]), (&json!(5.0), &json!(0.0)), "{done}");
    the_metrics_are_a_file(&platform, &done).await;
    the_usage_is_reported(&platform, &done).await;
    let after = estimate(&platform, &asked).await;
    assert_eq!((&after["pace"]["source"], &after["pace"]["runs"]), (&json!("measured"), &json!(1)), "{after}");
    assert_eq!(after["duration_source"], "measured", "{after}");
    let note = after["duration_note"].as_str().unwrap();
    assert!(note.starts_with("Measured in 1 run of this base model on ") && !note.contains("this offer"), "{note}");
    what_a_job_would_refuse_is_refused(&platform, asked).await;
}

async fn the_metrics_are_a_file(platform: &Platform, done: &Value) {
    let id = done["result_files"][0].as_str().unwrap();
    let file = get(platform, &format!("/v1/files/{id}")).await;
    assert_eq!((&file["purpose"], &file["filename"]), (&json!("fine-tune-results"), &json!("step_metrics.csv")));
    let content = client().get(format!("{}/v1/files/{id}/content", platform.url)).bearer_auth(&platform.api_key);
    let text = content.send().await.unwrap().text().await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy");
    assert_eq!(lines.len() as u64, 1 + done["total_steps"].as_u64().unwrap(), "{text}");
    let last: Vec<&str> = lines[lines.len() - 1].split(',').collect();
    assert!(last.len() == 5 && last.iter().all(|cell| cell.parse::<f64>().is_ok()), "validated at the end: {last:?}");
}

async fn the_usage_is_reported(platform: &Platform, done: &Value) {
    let body = json!({"model": done["fine_tuned_model"], "messages": [{"role": "user", "content": "question 3"}]});
    let (status, answer) = platform.call(Method::POST, "/v1/chat/completions", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let start = done["created_at"].as_i64().unwrap();
    let path = format!("/v1/organization/usage/completions?start_time={start}&group_by=model&group_by=api_key_id");
    let page = get(platform, &path).await;
    let result = &page["data"][0]["results"][0];
    assert_eq!(result["model"], done["fine_tuned_model"], "{page}");
    for (ours, theirs) in [("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")] {
        assert_eq!(result[ours], answer["usage"][theirs], "{page}");
    }
    assert!(result["api_key_id"].as_str().unwrap().starts_with("key_"), "{page}");
    let path = format!("/v1/organization/usage/training?start_time={start}&group_by[]=fine_tuning_job_id");
    let result = get(platform, &path).await["data"][0]["results"][0].clone();
    assert_eq!((&result["fine_tuning_job_id"], &result["trained_tokens"]), (&done["id"], &done["trained_tokens"]));
    let costs = get(platform, &format!("/v1/organization/costs?start_time={start}")).await;
    assert_eq!(costs["data"][0]["results"][0]["amount"], json!({"value": 0.0, "currency": "usd"}), "{costs}");
    let budget = platform.json(&["budgets", "set", "12.5"]).unwrap();
    assert_eq!((&budget["monthly_usd"], &budget["spent_usd"]), (&json!(12.5), &json!(0.0)));
    platform.json(&["usage", "training", "--by", "model"]).unwrap();
}

async fn what_a_job_would_refuse_is_refused(platform: &Platform, mut asked: Value) {
    asked["trainer"]["max_length"] = json!(8);
    let (status, answer) = platform.call(Method::POST, "/v1/fine_tuning/estimates", Some(asked)).await.unwrap();
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("row_too_long")), "{answer}");
}
