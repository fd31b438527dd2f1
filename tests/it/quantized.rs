//! Each adapter is served over its base in the quantization that it was trained over, by a replica with that
//! quantization; the answers of other models do not change.

use std::{fs, time::Duration};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{create, get, job};

/// The tolerance for equal log-probabilities, whose sums may be computed in another order.
const SAME: f64 = 1e-5;

/// Returns the log-probabilities of a prompt's tokens under a model, and the response's `system_fingerprint`.
pub(crate) async fn scores(platform: &Platform, model: &str) -> (Vec<f64>, String) {
    // Each byte is a token; the special tokens 257 and 258 begin and end a turn, and a text cannot contain them.
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let prompt = [vec![257], bytes("user\nquestion 3"), vec![258, 10, 257], bytes("assistant\n{\"ok\": ")].concat();
    let body = json!({"model": model, "prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 1,
        "temperature": 0});
    let (status, answer) = platform.call(Method::POST, "/v1/completions", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{model}: {answer}\n{}", platform.folder().log());
    let told = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let told: Vec<f64> = told.iter().filter_map(Value::as_f64).collect();
    assert!(told.len() > 30, "{answer}");
    (told, answer["system_fingerprint"].as_str().unwrap().to_owned())
}

/// Returns the largest difference of two models' log-probabilities.
pub(crate) fn apart(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

async fn train(platform: &Platform, quantization: Value) -> (String, String) {
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let mut asked = job(&file);
    asked["quantization"] = quantization;
    let id = create(platform, asked).await;
    let done = platform.ended(&id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    (id, done["fine_tuned_model"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_served_over_the_quantization_that_it_was_trained_over() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let (id, over_nf4) = train(&platform, json!({"type": "nf4"})).await;
    let digest = get(&platform, "/v1/base_models/tiny").await["digest"].as_str().unwrap()[..12].to_owned();

    let (base, base_fingerprint) = scores(&platform, "tiny").await;
    let (tuned, fingerprint) = scores(&platform, &over_nf4).await;
    assert_eq!(base_fingerprint, format!("fp_{digest}_none"));
    let over_base = format!("fp_{digest}_nf4-double-packed");
    assert!(
        fingerprint.starts_with(&format!("{over_base}_")) && fingerprint.len() == over_base.len() + 13,
        "{fingerprint}"
    );
    let serving = platform.descendants().unwrap().into_iter().filter(|(_, c)| c.contains("attune-serving")).count();
    assert!(serving >= 2, "a replica for each quantization, and there are {serving}");
    // The two replicas do not affect each other.
    assert!(apart(&scores(&platform, "tiny").await.0, &base) < SAME);

    let checkpoints = get(&platform, &format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await;
    let checkpoint = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap();
    let of_checkpoint = scores(&platform, checkpoint).await.1;
    assert!(of_checkpoint.starts_with(&format!("{over_base}_")), "{of_checkpoint}");

    the_quantization_is_shown_everywhere(&platform, &id, &over_nf4).await;
    an_import_keeps_it_or_says_another(&platform, &over_nf4, &tuned, &fingerprint).await;
    a_job_that_continues_keeps_it(&platform, &over_nf4).await;
}

async fn the_quantization_is_shown_everywhere(platform: &Platform, job: &str, model: &str) {
    let nf4 = json!({"type": "nf4", "double_quant": true});
    assert_eq!(get(platform, &format!("/v1/adapters/{model}")).await["quantization"], nf4);
    let manifest = get(platform, &format!("/v1/adapters/{model}/manifest")).await;
    assert_eq!(manifest["base_model"]["quantization"], nf4, "{manifest}");
    assert_eq!(manifest["origin"]["gate"]["quantization"], nf4, "{manifest}");
    let difference = manifest["origin"]["gate"]["logit_difference"].as_f64().unwrap();
    assert!(difference > 0.0 && difference <= 1e-4, "{manifest}");
    let events = get(platform, &format!("/v1/fine_tuning/jobs/{job}/events?limit=100")).await;
    let told = events["data"].as_array().unwrap().iter().filter_map(|event| event["message"].as_str());
    let gate = "Publish gate: served over the base in NF4 with double quantization, ";
    assert_eq!(told.filter(|message| message.starts_with(gate)).count(), 1, "{events}");
}

async fn an_import_keeps_it_or_says_another(platform: &Platform, model: &str, tuned: &[f64], fingerprint: &str) {
    let folder = platform.folder().path("exported");
    let path = text(&folder).unwrap().to_owned();
    platform.json(&["adapters", "export", model, "--format", "peft", &path]).unwrap();
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("## The base: NF4 with double quantization"), "{card}");
    assert!(card.contains("bnb_4bit_use_double_quant=True") && card.contains("vllm serve ./base"), "{card}");

    let import = |name: &str, more: &[&str]| {
        let arguments = ["adapters", "import", &path, "--base-model", "tiny", "--name", name];
        platform.json(&[&arguments, more].concat())
    };
    // The manifest states the quantization.
    let back = import("back", &[]).unwrap();
    let (same, over) = scores(platform, back["model"].as_str().unwrap()).await;
    assert!(apart(&same, tuned) < SAME && over == fingerprint, "{over} {}", apart(&same, tuned));
    let refused = import("other", &["--quantization", "none"]).unwrap_err().to_string();
    assert!(refused.contains("'quantization' is none, but attune_manifest.json states"), "{refused}");
    let refused = import("other", &["--quantization", "fp4"]).unwrap_err().to_string();
    assert!(refused.contains("Invalid 'quantization': 'fp4'. Use one of"), "{refused}");
    // Without a stated quantization it is `none`, which the adapter was not trained over.
    let plain = import("plain", &["--skip", "attune_manifest.json"]).unwrap();
    assert_eq!(plain["quantization"]["type"], "none");
    let (other, over) = scores(platform, plain["model"].as_str().unwrap()).await;
    assert!(over.contains("_none_") && apart(&other, tuned) > 1e-3, "{over} {}", apart(&other, tuned));
    // The form states it. The same content over another quantization is a new version of the adapter.
    let again = import("plain", &["--skip", "attune_manifest.json", "--quantization", "nf4-double"]).unwrap();
    assert_eq!(again["version"], 2, "{again}");
    assert!(apart(&scores(platform, again["model"].as_str().unwrap()).await.0, tuned) < SAME);
    import("plain", &["--skip", "attune_manifest.json", "--quantization", "nf4-double"]).unwrap_err();
}

/// Checks that a job that continues an adapter trains over the adapter's quantization, unless it sets another.
async fn a_job_that_continues_keeps_it(platform: &Platform, model: &str) {
    let file = platform.upload(&tiny::rows(8)).unwrap();
    for (quantization, in_force) in [(None, "nf4"), (Some(json!({"type": "int8"})), "int8")] {
        let mut asked = json!({"model": model, "training_file": file});
        if let Some(quantization) = quantization {
            asked["quantization"] = quantization;
        }
        let id = create(platform, asked).await;
        let view = get(platform, &format!("/v1/fine_tuning/jobs/{id}")).await;
        assert_eq!(view["quantization"]["type"], in_force, "{view}");
        platform.call(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel"), None).await.unwrap();
    }
}
