//! A base that is imported from a quantized GGUF file keeps the file's blocks: it is served from them, and adapters are
//! trained over their numbers.

use std::time::Duration;

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    adapters::train,
    house::{create, job},
    quantized::{apart, scores},
};

/// The most that a log-probability of a token differs where activations are rounded to 14 bits.
const ALLOWED: f64 = 0.05;

/// Exports a tuned model as a GGUF file in Q8_0, and returns the file's path.
async fn gguf(platform: &Platform) -> std::path::PathBuf {
    platform.import_tiny().unwrap();
    let model = train(platform, &tiny::rows(24)).await;
    let folder = platform.folder().path("exported");
    let command = ["adapters", "export", &model, text(&folder).unwrap(), "--format", "gguf", "--dtype", "q8_0"];
    platform.json(&command).unwrap();
    folder.join("model.gguf")
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_gguf_file_are_kept_served_and_trained_over() {
    let platform = Platform::start().unwrap();
    let file = gguf(&platform).await;
    let import = |name: &str, more: &[&str]| {
        let command = ["models", "import", text(&file).unwrap(), "--name", name];
        platform.json(&[&command[..], more].concat()).unwrap()
    };
    let (kept, plain) = (import("kept", &[]), import("plain", &["--dequantize"]));
    let blocks = &kept["architecture"]["gguf_blocks"];
    let (weights, bytes) = (&blocks["projection_weights"], &blocks["projection_bytes"]);
    assert_eq!(weights.as_u64().unwrap() * 34, bytes.as_u64().unwrap() * 32, "{kept}");
    assert!(plain["architecture"]["gguf_blocks"].is_null(), "{plain}");
    let size = |view: &Value| view["files"].as_array().unwrap().iter().filter_map(|file| file["bytes"].as_u64()).max();
    assert!(size(&kept).unwrap() * 3 < size(&plain).unwrap());

    let ((from_blocks, fingerprint), (in_f32, of_plain)) =
        (scores(&platform, "kept").await, scores(&platform, "plain").await);
    let digest = &kept["digest"].as_str().unwrap()[..12];
    assert_eq!(fingerprint, format!("fp_{digest}_gguf-packed"));
    assert!(of_plain.ends_with("_none"), "{of_plain}");
    let far = apart(&from_blocks, &in_f32);
    assert!(far > 0.0 && far < ALLOWED, "{far}");

    let body = json!({"model": "kept", "engine": "vllm"});
    let (status, refused) = platform.call(Method::POST, "/v1/deployments", Some(body)).await.unwrap();
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("engine")), "{refused}");

    let mut asked = job(&platform.upload(&tiny::rows(24)).unwrap());
    (asked["model"], asked["quantization"]) = (json!("kept"), json!({"type": "none"}));
    let id = create(&platform, asked).await;
    let done = platform.ended(&id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    let (_, tuned) = scores(&platform, done["fine_tuned_model"].as_str().unwrap()).await;
    assert!(tuned.starts_with(&format!("fp_{digest}_gguf-packed_")), "{tuned}");
}
