//! Invalid input is refused with the field, the value and the allowed range, and leaves no rows behind.

use std::fs;

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

/// Uploads `bytes` with `attune files upload`; returns whether it succeeded, and its stderr.
fn upload(platform: &Platform, bytes: &[u8]) -> (bool, String) {
    let path = platform.folder().path("bad.jsonl");
    fs::write(&path, bytes).unwrap();
    let output = platform.attune(&["files", "upload", text(&path).unwrap()]).unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn refused(platform: &Platform, path: &str, body: Value) -> Value {
    let (status, answer) = platform.call(Method::POST, path, Some(body.clone())).await.unwrap();
    assert!((400..500).contains(&status), "{body} was answered with {status}: {answer}");
    for field in ["message", "type", "param", "code"] {
        assert!(answer["error"].get(field).is_some(), "not OpenAI's error shape: {answer}");
    }
    answer["error"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_by_name_and_leaves_nothing_behind() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    bad_files(&platform).await;
    bad_jobs(&platform).await;
    bad_chats(&platform).await;
    bad_models(&platform).await;
}

async fn bad_files(platform: &Platform) {
    let good = tiny::rows(1);
    let cases: [(&[u8], &str); 6] = [
        (b"", "empty"),
        (b"{\"messages\": [", "line 1"),
        (&[good.as_bytes(), b"{\"messages\": []}\n"].concat(), "line 2"),
        (&[good.as_bytes(), b"{\"prompt\": \"a\"}\n"].concat(), "line 2"),
        (&[good.as_bytes(), b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}\n"].concat(), "line 2"),
        (b"{\"messages\": [{\"role\": \"wizard\", \"content\": \"a\"}]}\n", "wizard"),
    ];
    for (bytes, named) in cases {
        let (success, said) = upload(platform, bytes);
        assert!(!success && said.contains(named), "{named:?} is not named: {said}");
    }
    let (_, files) = platform.call(Method::GET, "/v1/files", None).await.unwrap();
    assert_eq!(files["data"], json!([]), "a refused upload left a file");
}

async fn bad_jobs(platform: &Platform) {
    let file = platform.upload(&tiny::rows(8)).unwrap();
    let with = |field: &str, value: Value| {
        let mut job = json!({"model": "tiny", "training_file": file});
        job[field] = value;
        job
    };
    for (job, param) in [
        (with("model", json!("nobody")), "model"),
        (with("training_file", json!("file-00000000000000000000000000000000")), "training_file"),
        (with("training_file", json!("nonsense")), "training_file"),
        (with("nonsense", json!(1)), "nonsense"),
        (with("seed", json!(-1)), "seed"),
        (with("adapter", json!({"rank": 0})), "adapter.rank"),
        (with("adapter", json!({"target_modules": ["x_proj"]})), "adapter.target_modules"),
        (with("trainer", json!({"learning_rate": 7})), "trainer.learning_rate"),
        (with("quantization", json!({"type": "int3"})), "quantization.type"),
        (with("trainer", json!({"eval_every_steps": 2})), "trainer.eval_every_steps"),
        (with("trainer", json!({"micro_batch_size": 1000})), "trainer.micro_batch_size"),
        (with("trainer", json!({"optimizer": "sgd"})), "trainer.optimizer"),
        (with("method", json!({"type": "supervised", "continued_pretraining": {}})), "method.continued_pretraining"),
        (with("continue_from", json!("adapter_00000000000000000000000000000000")), "continue_from"),
        (with("continue_from", json!("ft:tiny:default::nobody")), "continue_from"),
    ] {
        let error = refused(platform, "/v1/fine_tuning/jobs", job).await;
        assert_eq!(error["param"], param, "{error}");
    }
    let (_, jobs) = platform.call(Method::GET, "/v1/fine_tuning/jobs", None).await.unwrap();
    assert_eq!(jobs["data"], json!([]), "a refused job left a row");
}

async fn bad_chats(platform: &Platform) {
    let with = |field: &str, value: Value| {
        let mut chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
        chat[field] = value;
        chat
    };
    for (chat, param) in [
        (with("model", json!("ft:tiny:default::nobody")), "model"),
        (with("temperature", json!(9)), "temperature"),
        (with("top_p", json!(1.5)), "top_p"),
        (with("max_tokens", json!(0)), "max_tokens"),
        (with("messages", json!([])), "messages"),
        (with("nonsense", json!(1)), "nonsense"),
        (with("tools", json!([{"type": "custom", "function": {"name": "f"}}])), "tools[0].type"),
    ] {
        let error = refused(platform, "/v1/chat/completions", chat).await;
        assert_eq!(error["param"], param, "{error}");
    }
    let long = with("messages", json!([{"role": "user", "content": "x".repeat(2000)}]));
    let error = refused(platform, "/v1/chat/completions", long).await;
    assert_eq!(error["code"], "context_length_exceeded", "{error}");
}

async fn bad_models(platform: &Platform) {
    let folder = platform.folder().path("torn");
    tiny::write(&folder, 1).unwrap();
    let weights = folder.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    let not_a_model = platform.folder().path("letter.gguf");
    fs::write(&not_a_model, b"dear reader").unwrap();
    for (path, named) in [(folder, "model.safetensors"), (not_a_model, "GGUF")] {
        let output = platform.attune(&["models", "import", text(&path).unwrap(), "--name", "torn"]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{named} is not named: {said}");
    }
    let (status, _) = platform.call(Method::GET, "/v1/base_models/torn", None).await.unwrap();
    assert_eq!(status, 404, "a refused import left a model");
}
