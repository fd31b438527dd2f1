//! Exports across real processes: a node writes them, other programs load them, and this platform loads them too.

use std::{fs, path::Path, time::Duration};

use attune_tests::{
    platform::{Platform, text},
    sha256, tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    adapters::{says, train},
    house::{create, job},
};

/// The prompt that `tests/python/check_exports.py` compares, with the answer.
const PROMPT: &str = "question 3";

fn exported(platform: &Platform, model: &str, name: &str, arguments: &[&str]) -> (std::path::PathBuf, Value) {
    let folder = platform.folder().path(name);
    let command = ["adapters", "export", model, text(&folder).unwrap(), "--format"];
    let view = platform.json(&[&command[..], arguments].concat()).unwrap();
    assert_eq!(view["status"], "succeeded", "{view}");
    (folder, view)
}

/// Compares the manifest with the folder, in which it is the only file that it does not name.
fn manifest_is_complete(folder: &Path, view: &Value) {
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("export_manifest.json")).unwrap()).unwrap();
    let files = manifest["files"].as_array().unwrap();
    assert_eq!(files.len() + 1, fs::read_dir(folder).unwrap().count(), "{manifest}");
    for file in files {
        let content = fs::read(folder.join(file["name"].as_str().unwrap())).unwrap();
        assert_eq!(file["sha256"], sha256(&content), "{file}");
    }
    assert_eq!((&manifest["loads_with"], &manifest["drift"]), (&view["loads_with"], &view["drift"]));
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("Licence") || view["format"] == "peft", "{card}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_models_answer_as_the_adapter_does() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let model = train(&platform, &tiny::rows(24)).await;

    let (folder, view) =
        exported(&platform, &model, "merged", &["merged", "--dtype", "f32", "--shard-bytes", "1048576"]);
    manifest_is_complete(&folder, &view);
    let drift = &view["drift"];
    assert!(drift["max_logit_difference"].as_f64().unwrap() < 1e-2, "{drift}");
    assert!(drift["mean_kl_divergence"].as_f64().unwrap() < 1e-5, "{drift}");
    answers(&platform, &folder, "merged").await;

    let (folder, view) = exported(&platform, &model, "gguf", &["gguf"]);
    manifest_is_complete(&folder, &view);
    assert!(fs::read_to_string(folder.join("Modelfile")).unwrap().starts_with("FROM ./model.gguf\n"));
    let converted = platform.folder().path("converted");
    let gguf = folder.join("model.gguf");
    platform.json(&["models", "convert", text(&gguf).unwrap(), text(&converted).unwrap()]).unwrap();
    answers(&platform, &converted, "converted").await;

    let (folder, view) = exported(&platform, &model, "adapter", &["gguf-adapter"]);
    manifest_is_complete(&folder, &view);
    assert!(view["drift"].is_null() && folder.join("adapter.gguf").is_file(), "{view}");
    four_bits_with_an_importance_matrix(&platform, &model);
    what_cannot_be_exported_is_refused(&platform, &model).await;
    a_checkpoint_is_exported_too(&platform, &model).await;
    what_is_deleted_is_gone(&platform, view["id"].as_str().unwrap()).await;
}

/// Imports a folder as a base model, and compares its answer with the adapter's.
async fn answers(platform: &Platform, folder: &Path, name: &str) {
    platform.json(&["models", "import", text(folder).unwrap(), "--name", name]).unwrap();
    let (answer, _) = says(platform, name).await;
    assert!(answer.starts_with(tiny::ANSWER), "{name}: {answer}");
}

fn four_bits_with_an_importance_matrix(platform: &Platform, model: &str) {
    let (folder, view) = exported(platform, model, "four", &["gguf", "--dtype", "q4_k_m", "--imatrix"]);
    manifest_is_complete(&folder, &view);
    assert_eq!((&view["dtype"], &view["imatrix"]), (&json!("q4_k_m"), &json!(true)), "{view}");
    let file = view["imatrix_file"].as_str().unwrap();
    assert!(file.starts_with("file-"), "{view}");
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("importance matrix") && card.contains("\nlicense: unknown\n"), "{card}");
    // The tiny model has rows of 64 and 128 weights, which are in blocks of 32 with 5 and 8 bits.
    let drift = view["drift"]["mean_kl_divergence"].as_f64().unwrap();
    assert!(drift < 1.0, "{view}");
    let (_, named) = exported(platform, model, "four-named", &["gguf", "--dtype", "q4_k_m", "--imatrix-file", file]);
    assert_eq!(named["imatrix_file"], file, "{named}");
    let digest = |view: &Value| {
        let files = view["files"].as_array().unwrap().clone();
        files.into_iter().find(|file| file["name"] == "model.gguf").unwrap()["sha256"].clone()
    };
    assert_eq!(digest(&named), digest(&view), "the same request gives the same bytes");
    platform.json(&["adapters", "exports", "delete", named["id"].as_str().unwrap()]).unwrap();
}

async fn what_cannot_be_exported_is_refused(platform: &Platform, model: &str) {
    let path = format!("/v1/adapters/{model}/exports");
    for (body, param, part) in [
        (json!({"format": "onnx"}), "format", "peft, merged, gguf, gguf_adapter"),
        (json!({"format": "gguf", "dtype": "q4_0"}), "dtype", "f32, f16, q8_0, q4_k_m"),
        (json!({"format": "gguf", "dtype": "q8_0", "imatrix": true}), "imatrix", "no scales to choose"),
        (json!({"format": "gguf", "dtype": "q4_k_m", "imatrix_file": "file-1"}), "imatrix_file", "no file 'file-1'"),
        (json!({"format": "peft", "base_weights": "original"}), "base_weights", "left out"),
        (json!({"format": "merged", "shard_bytes": 1}), "shard_bytes", "1048576 to"),
    ] {
        let (status, answer) = platform.call(Method::POST, &path, Some(body)).await.unwrap();
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
    let missing = platform.call(Method::POST, "/v1/adapters/nobody/exports", Some(json!({"format": "merged"}))).await;
    assert_eq!(missing.unwrap().0, 404);
}

async fn a_checkpoint_is_exported_too(platform: &Platform, model: &str) {
    let (_, version) = platform.call(Method::GET, &format!("/v1/adapters/{model}"), None).await.unwrap();
    let path = format!("/v1/fine_tuning/jobs/{}/checkpoints", version["fine_tuning_job"].as_str().unwrap());
    let (_, checkpoints) = platform.call(Method::GET, &path, None).await.unwrap();
    let checkpoint = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap();
    let (folder, view) = exported(platform, checkpoint, "checkpoint", &["peft"]);
    assert_eq!(view["model"], checkpoint, "{view}");
    manifest_is_complete(&folder, &view);
    assert!(folder.join("adapter_model.safetensors").is_file() && folder.join("adapter_config.json").is_file());
}

async fn what_is_deleted_is_gone(platform: &Platform, id: &str) {
    let path = format!("/v1/exports/{id}");
    assert_eq!(platform.call(Method::DELETE, &path, None).await.unwrap().0, 200);
    assert_eq!(platform.call(Method::GET, &path, None).await.unwrap().0, 404);
    let (_, list) = platform.call(Method::GET, "/v1/exports", None).await.unwrap();
    assert_eq!(list["data"].as_array().unwrap().len(), 4, "{list}");
}

/// Trains an adapter over the base without quantization, which other programs load without further settings.
async fn trained_over_floats(platform: &Platform) -> String {
    let mut asked = job(&platform.upload(&tiny::rows(24)).unwrap());
    asked["quantization"] = json!({"type": "none"});
    asked["trainer"]["learning_rate"] = json!(0.002);
    let id = create(platform, asked).await;
    let done = platform.ended(&id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}");
    done["fine_tuned_model"].as_str().unwrap().to_owned()
}

/// Returns the prompt, and the IDs and log-probabilities of its tokens and of those of a greedy answer.
async fn served(platform: &Platform, model: &str) -> Value {
    let parameters =
        json!({"max_new_tokens": 16, "ignore_eos_token": true, "details": true, "decoder_input_details": true});
    let body = json!({"inputs": PROMPT, "parameters": parameters});
    let (status, answer) = platform.call(Method::POST, &format!("/lorax/{model}/generate"), Some(body)).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let part = |name: &str| answer["details"][name].as_array().unwrap().clone();
    let (prompt, tokens) = (part("prefill"), part("tokens"));
    assert_eq!(tokens.len(), 16, "{answer}");
    let all = || prompt.iter().chain(&tokens);
    let ids: Vec<&Value> = all().map(|token| &token["id"]).collect();
    let logprobs: Vec<&Value> = all().map(|token| &token["logprob"]).collect();
    json!({"prompt": PROMPT, "prompt_tokens": prompt.len(), "ids": ids, "logprobs": logprobs})
}

/// Writes the exports that `scripts/export-test` loads in other programs, and the served adapter's log-probabilities.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/export-test runs it, with the Python that loads the exports"]
#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
async fn exports_load_in_other_programs() {
    let python = std::env::var("ATTUNE_EXPORT_PYTHON").unwrap();
    let platform = Platform::start().unwrap();
    let base = platform.folder().path("tiny");
    tiny::write_wide(&base, 7).unwrap();
    platform.json(&["models", "import", text(&base).unwrap(), "--name", "tiny"]).unwrap();
    let model = trained_over_floats(&platform).await;
    let root = platform.folder().path("exports");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("rows.jsonl"), tiny::rows(24)).unwrap();
    for (name, arguments) in [
        ("peft", &["peft"][..]),
        ("merged-f32", &["merged", "--dtype", "f32", "--shard-bytes", "1048576"][..]),
        ("merged-bf16", &["merged"][..]),
        ("gguf-f16", &["gguf"][..]),
        ("gguf-q8_0", &["gguf", "--dtype", "q8_0"][..]),
        ("gguf-q4_k_m", &["gguf", "--dtype", "q4_k_m"][..]),
        ("gguf-q4_k_m-imatrix", &["gguf", "--dtype", "q4_k_m", "--imatrix"][..]),
        ("gguf-adapter", &["gguf-adapter"][..]),
    ] {
        let folder = root.join(name);
        let command = ["adapters", "export", &model, text(&folder).unwrap(), "--format"];
        platform.json(&[&command[..], arguments].concat()).unwrap();
    }
    fs::write(root.join("served.json"), served(&platform, &model).await.to_string()).unwrap();
    let mut check = std::process::Command::new(python);
    check.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/check_exports.py"));
    check.args([&base, &root]).env_remove("LD_LIBRARY_PATH");
    let output = check.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    stdout.lines().filter(|line| line.starts_with("{\"figure\"")).for_each(attune_tests::figure);
    assert!(output.status.success(), "{stdout}\n{stderr}");
}
