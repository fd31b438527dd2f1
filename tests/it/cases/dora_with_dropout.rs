//! Dropout only affects training: an adapter with dropout must be accepted for serving.

use std::{fs, path::PathBuf};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

fn case() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/cases/12-dora-with-dropout")
}

#[tokio::test(flavor = "multi_thread")]
async fn case_12_a_dora_adapter_with_dropout_is_taken_and_answers_as_one_without() {
    let platform = Platform::start().unwrap();
    platform.json(&["models", "import", text(&case().join("base")).unwrap(), "--name", "tiny"]).unwrap();
    let (mut answers, mut models) = (Vec::new(), Vec::new());
    for name in ["without", "with"] {
        let folder = case().join(name);
        let arguments = ["adapters", "import", text(&folder).unwrap(), "--base-model", "tiny", "--name", name];
        let adapter = platform.json(&arguments).unwrap();
        let mut body: Value = serde_json::from_slice(&fs::read(case().join("request.json")).unwrap()).unwrap();
        body["model"] = adapter["model"].clone();
        let (status, answer) = platform.call(Method::POST, "/v1/completions", Some(body)).await.unwrap();
        assert_eq!(status, 200, "{name}: {answer}");
        answers.push(answer["choices"].clone());
        models.push(adapter["model"].clone());
        let want = if name == "with" { 0.05 } else { 0.0 };
        assert_eq!(adapter["adapter"]["lora_dropout"], want, "kept as it came");
    }
    assert!(!answers[0][0]["logprobs"]["token_logprobs"].as_array().unwrap().is_empty());
    assert_eq!(answers[0], answers[1]);

    // Training it further is possible without dropout; with dropout the API refuses it and names the field.
    let file = platform.upload(&tiny::rows(8)).unwrap();
    let further = |dropout: Option<f64>| {
        let mut job = json!({"model": models[1], "training_file": file, "trainer": {"max_steps": 1}});
        if let Some(dropout) = dropout {
            job["adapter"] = json!({"lora_dropout": dropout});
        }
        platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job))
    };
    let (status, refused) = further(Some(0.05)).await.unwrap();
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("adapter.lora_dropout")), "{refused}");
    let (status, job) = further(None).await.unwrap();
    assert_eq!(status, 200, "{job}");
    let done = platform.ended(job["id"].as_str().unwrap(), std::time::Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
}
