//! The walkthrough of docs/ARCHITECTURE.md, end to end: import, upload, train, serve, export.

use std::{fs, process::Command, time::Duration};

use attune_tests::{
    platform::{Platform, client, text},
    tiny,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// Returns a job that is small enough for a test but has several steps and checkpoints.
pub(crate) fn job(training_file: &str) -> Value {
    json!({
        "model": "tiny", "training_file": training_file, "seed": 7, "suffix": "house",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 4}}},
        "adapter": {"rank": 16}, "trainer": {"learning_rate": 0.01, "checkpoint_every_steps": 5},
    })
}

pub(crate) async fn create(platform: &Platform, job: Value) -> String {
    let (status, view) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    assert_eq!(status, 200, "{view}");
    view["id"].as_str().unwrap().to_owned()
}

/// Returns the response to a `GET` request that must succeed.
pub(crate) async fn get(platform: &Platform, path: &str) -> Value {
    let (status, answer) = platform.call(Method::GET, path, None).await.unwrap();
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn ask(platform: &Platform, model: &str, question: &str) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0,
        "max_tokens": 40});
    let (status, answer) = platform.call(Method::POST, "/v1/chat/completions", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    answer
}

/// Returns the text of a streamed answer, and its last finish reason.
async fn ask_streamed(platform: &Platform, model: &str, question: &str) -> (String, String) {
    let body = json!({"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0,
                      "max_tokens": 40, "stream": true});
    let answer = client()
        .post(format!("{}/v1/chat/completions", platform.url))
        .bearer_auth(&platform.api_key)
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let body = answer.text().await.unwrap();
    assert!(body.trim_end().ends_with("data: [DONE]"), "{body}");
    let (mut said, mut reason) = (String::new(), String::new());
    for line in body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]") {
        let chunk: Value = serde_json::from_str(line).unwrap();
        said.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or(""));
        reason = chunk["choices"][0]["finish_reason"].as_str().unwrap_or(&reason).to_owned();
    }
    (said, reason)
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_becomes_an_adapter_that_answers_and_is_exported() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let id = create(&platform, job(&file)).await;
    let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert!(model.starts_with("ft:tiny:default:house:"), "{model}");
    assert!(done["trained_tokens"].as_u64().unwrap() > 0, "{done}");

    the_events_show_the_story(&platform, &id).await;
    the_tuned_model_learned_what_the_base_does_not_know(&platform, model).await;
    a_checkpoint_answers_as_well(&platform, &id, model).await;
    the_export_is_a_peft_folder(&platform, model);
    nothing_is_left(&platform);
    platform.stop(Signal::SIGTERM).unwrap();
}

async fn the_events_show_the_story(platform: &Platform, id: &str) {
    let path = format!("/v1/fine_tuning/jobs/{id}/events?limit=100");
    let (_, events) = platform.call(Method::GET, &path, None).await.unwrap();
    let events = events["data"].as_array().unwrap();
    let losses: Vec<f64> = events.iter().rev().filter_map(|event| event["data"]["train_loss"].as_f64()).collect();
    assert_eq!(losses.len(), 36, "24 rows in batches of 4, 6 times: {events:?}");
    assert!(losses[35] < losses[0] / 4.0, "the loss does not fall: {losses:?}");
    let (_, checkpoints) =
        platform.call(Method::GET, &format!("/v1/fine_tuning/jobs/{id}/checkpoints"), None).await.unwrap();
    assert!(!checkpoints["data"].as_array().unwrap().is_empty());
}

async fn the_tuned_model_learned_what_the_base_does_not_know(platform: &Platform, model: &str) {
    let base = ask(platform, "tiny", "question 3").await;
    assert_ne!(content(&base), tiny::ANSWER);
    let tuned = ask(platform, model, "question 3").await;
    assert_eq!(content(&tuned), tiny::ANSWER, "{tuned}");
    assert_eq!(tuned["choices"][0]["finish_reason"], "stop");
    let usage = &tuned["usage"];
    assert_eq!(
        usage["completion_tokens"].as_u64().unwrap(),
        tiny::ANSWER.len() as u64 + 1,
        "a byte a token, and the end"
    );
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + tiny::ANSWER.len() as u64 + 1)
    );
    let streamed = ask_streamed(platform, model, "question 3").await;
    assert_eq!(streamed, (tiny::ANSWER.to_owned(), "stop".to_owned()));
}

/// Checks that the last checkpoint gives the trained answer, since it is of the last step.
async fn a_checkpoint_answers_as_well(platform: &Platform, id: &str, model: &str) {
    let path = format!("/v1/fine_tuning/jobs/{id}/checkpoints");
    let (_, checkpoints) = platform.call(Method::GET, &path, None).await.unwrap();
    let steps: Vec<_> = checkpoints["data"].as_array().unwrap().iter().map(|c| c["step_number"].as_u64()).collect();
    assert_eq!(steps.len(), 3, "{checkpoints}");
    let name = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap();
    assert_eq!(Some(name), steps[0].map(|step| format!("{model}:ckpt-step-{step}")).as_deref());
    assert_eq!(content(&ask(platform, name, "question 3").await), tiny::ANSWER);
    let (status, view) = platform.call(Method::GET, &format!("/v1/models/{name}"), None).await.unwrap();
    assert_eq!((status, view["id"].as_str()), (200, Some(name)));

    let other = platform.json(&["projects", "create", "other"]).unwrap();
    let permissions = |arguments: &[&str]| platform.json(&[&["jobs", "permissions"], arguments].concat()).unwrap();
    let granted = permissions(&["grant", name, other["id"].as_str().unwrap()]);
    assert_eq!(granted["data"][0]["project_id"], other["id"], "{granted}");
    assert_eq!(permissions(&["list", name])["data"], granted["data"]);
    let revoked = permissions(&["revoke", name, granted["data"][0]["id"].as_str().unwrap()]);
    assert_eq!((&revoked["deleted"], &permissions(&["list", name])["data"]), (&json!(true), &json!([])));
}

fn the_export_is_a_peft_folder(platform: &Platform, model: &str) {
    let folder = platform.folder().path("exported");
    platform.json(&["adapters", "export", model, "--format", "peft", text(&folder).unwrap()]).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(16)));
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let q = tensors.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
    assert_eq!(q.shape(), [16, 64]);
    assert_eq!(tensors.names().len(), 2 * 7 * 2);
    // An independent implementation, over the same base, also gives the trained answer.
    let mut check = Command::new("python3");
    check.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/check_peft.py"));
    check.arg(platform.folder().path("tiny")).arg(&folder).args(["question 3", tiny::ANSWER]);
    platform.run_client(&mut check).unwrap();
    a_pull_continues_where_it_was(platform, model, &bytes);
}

/// Checks that a pull resumes: downloaded bytes are kept, and other content is removed.
fn a_pull_continues_where_it_was(platform: &Platform, model: &str, whole: &[u8]) {
    let (folder, half) = (platform.folder().path("pulled"), platform.folder().path("pulled.part"));
    fs::create_dir(&half).unwrap();
    fs::write(half.join("adapter_model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    fs::write(half.join("adapter_config.json"), "torn").unwrap();
    let pull = || platform.json(&["adapters", "pull", model, text(&folder).unwrap()]);
    let torn = pull().unwrap_err().to_string();
    assert!(torn.contains("was removed"), "{torn}");
    assert!(!folder.exists() && half.join("adapter_model.safetensors").exists());
    for _ in 0..2 {
        pull().unwrap();
        assert_eq!(fs::read(folder.join("adapter_model.safetensors")).unwrap(), whole);
    }
    assert!(!half.exists());
}

/// Checks that a finished job leaves no trainer process.
fn nothing_is_left(platform: &Platform) {
    let left: Vec<_> =
        platform.descendants().unwrap().into_iter().filter(|(_, c)| c.contains("attune-trainer")).collect();
    assert!(left.is_empty(), "{left:?}");
}
