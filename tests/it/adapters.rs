//! Adapters across real processes: versions, export and import, refused imports, and aliases that move while requests
//! run.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attune_tests::{
    platform::{Platform, client, text},
    sha256, tiny,
};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::house::{create, get, job};

/// The answer that the second version is trained on.
const OTHER: &str = "{\"no\": false}";

/// A folder's files by name.
type Folder = BTreeMap<String, Vec<u8>>;

/// Trains an adapter named `house` on these rows. Returns the name of its model.
pub(crate) async fn train(platform: &Platform, rows: &str) -> String {
    let file = platform.upload(rows).unwrap();
    let id = create(platform, job(&file)).await;
    let done = platform.ended(&id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    done["fine_tuned_model"].as_str().unwrap().to_owned()
}

/// Returns a model's answer, and the `model` field of the response.
pub(crate) async fn says(platform: &Platform, model: &str) -> (String, String) {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "question 3"}], "temperature": 0,
        "max_tokens": 40});
    let (status, answer) = platform.call(Method::POST, "/v1/chat/completions", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{model}: {answer}\n{}", platform.folder().log());
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    (said, answer["model"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_have_versions_that_are_exported_imported_and_promoted() {
    let platform = Arc::new(Platform::start().unwrap());
    platform.import_tiny().unwrap();
    let first = train(&platform, &tiny::rows(24)).await;
    let second = train(&platform, &tiny::rows(24).replace("\\\"ok\\\": true", "\\\"no\\\": false")).await;

    versions_and_manifests_show_where_they_come_from(&platform, &first, &second).await;
    let folder = an_archive_is_the_folder(&platform, &first).await;
    an_exported_adapter_comes_back_and_answers_the_same(&platform, &folder).await;
    a_prefetched_version_is_loaded_ahead_of_requests(&platform).await;
    what_is_wrong_with_a_folder_is_reported_all_at_once(&platform, &folder).await;
    an_alias_moves_under_load_and_the_base_never_answers(&platform, &first, &second).await;
    a_canary_is_promoted_and_rolled_back(&platform, &first, &second).await;
    what_an_alias_names_stays_and_what_is_deleted_is_gone(&platform, &first).await;
}

async fn versions_and_manifests_show_where_they_come_from(platform: &Platform, first: &str, second: &str) {
    let versions = get(platform, "/v1/adapters/house/versions").await;
    let told: Vec<_> = versions["data"].as_array().unwrap().iter().map(|v| (&v["version"], &v["model"])).collect();
    assert_eq!(told, [(&json!(2), &json!(second)), (&json!(1), &json!(first))]);
    let version = get(platform, "/v1/adapters/house@1").await;
    let manifest = get(platform, &format!("/v1/adapters/{first}/manifest")).await;
    let base = get(platform, "/v1/base_models/tiny").await;
    let job = get(platform, &format!("/v1/fine_tuning/jobs/{}", version["fine_tuning_job"].as_str().unwrap())).await;
    let file = get(platform, &format!("/v1/files/{}", job["training_file"].as_str().unwrap())).await;
    assert_eq!(manifest["base_model"]["digest"], base["digest"]);
    let origin = &manifest["origin"];
    assert_eq!((&origin["training_data"]["sha256"], &origin["seed"]), (&file["sha256"], &json!(7)));
    assert_eq!((&origin["run"]["provider"], &manifest["spec"]["rank"]), (&json!("local"), &json!(16)));
    assert!(origin["metrics"]["train_loss"].is_f64() && origin["train"]["learning_rate"] == 0.01, "{manifest}");
}

/// Exports and unpacks an archive, and compares its digests with those that the API returns.
async fn an_archive_is_the_folder(platform: &Platform, model: &str) -> Folder {
    let path = platform.folder().path("house.tar");
    platform.json(&["adapters", "export", model, "--format", "tar", text(&path).unwrap()]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let mut folder = Folder::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().strip_prefix("house-1").unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        folder.insert(name, content);
    }
    let view = get(platform, &format!("/v1/adapters/{model}")).await;
    let files = view["files"].as_array().unwrap();
    assert_eq!(files.len(), folder.len());
    for file in files {
        let content = &folder[file["name"].as_str().unwrap()];
        assert_eq!(file["sha256"], sha256(content), "{file}");
    }
    assert!(folder.contains_key("attune_manifest.json") && folder.contains_key("adapter_model.safetensors"));
    folder
}

fn write(folder: &Folder, path: &Path) {
    fs::create_dir_all(path).unwrap();
    for (name, content) in folder {
        fs::write(path.join(name), content).unwrap();
    }
}

async fn an_exported_adapter_comes_back_and_answers_the_same(platform: &Platform, folder: &Folder) {
    let path = platform.folder().path("copy");
    write(folder, &path);
    let import = ["adapters", "import", text(&path).unwrap(), "--base-model", "tiny"];
    let view = platform.json(&import).unwrap();
    assert_eq!((&view["name"], &view["version"], &view["fine_tuning_job"]), (&json!("copy"), &json!(1), &Value::Null));
    let original = get(platform, "/v1/adapters/house@1").await;
    assert_eq!(view["digest"], original["digest"], "named by content");
    let again = platform.attune(&import).unwrap();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("as version 1"));
    assert_eq!(says(platform, "copy@1").await.0, tiny::ANSWER);
    assert_eq!(says(platform, view["model"].as_str().unwrap()).await.0, tiny::ANSWER);

    let file = platform.upload(&tiny::rows(8)).unwrap();
    let further = json!({"model": "copy@1", "training_file": file, "trainer": {"max_steps": 2}});
    let id = create(platform, further).await;
    let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
    assert_eq!((&done["status"], &done["continue_from"]), (&json!("succeeded"), &view["id"]), "{done}");
    assert_eq!(get(platform, "/v1/adapters/copy@2").await["model"], done["fine_tuned_model"]);
}

/// The replica that has answered for `copy@1` loads `copy@2`, which no request has named.
async fn a_prefetched_version_is_loaded_ahead_of_requests(platform: &Platform) {
    let tier = |view: &Value| view["replicas"][0]["tier"].clone();
    assert_eq!(says(platform, "copy@1").await.0, tiny::ANSWER);
    let view = platform.json(&["adapters", "residency", "copy@2"]).unwrap();
    assert_eq!((&view["prefetched_until"], tier(&view)), (&Value::Null, json!("store")), "{view}");
    let view = platform.json(&["adapters", "prefetch", "copy@2", "--seconds", "600"]).unwrap();
    assert!(view["prefetched_until"].is_number(), "{view}");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let view = get(platform, "/v1/adapters/copy@2/residency").await;
        if tier(&view) == "memory" {
            let replica = &view["replicas"][0];
            assert_eq!((&replica["requests"], &replica["loaded_from"]), (&json!(0), &json!("store")), "{view}");
            return;
        }
        assert!(Instant::now() < deadline, "{view}\n{}", platform.folder().log());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn import(platform: &Platform, folder: &Folder, base_digest: Option<&str>) -> (u16, Value) {
    let mut form = Form::new().text("name", "bad").text("base_model", "tiny");
    if let Some(digest) = base_digest {
        form = form.text("base_digest", digest.to_owned());
    }
    for (name, content) in folder {
        form = form.part("files", Part::bytes(content.clone()).file_name(name.clone()));
    }
    let url = format!("{}/v1/adapters", platform.url);
    let answer = client().post(url).bearer_auth(&platform.api_key).multipart(form).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn with_config(folder: &Folder, field: &str, value: Value) -> Folder {
    let mut changed = folder.clone();
    let mut config: Value = serde_json::from_slice(&changed["adapter_config.json"]).unwrap();
    config[field] = value;
    changed.insert("adapter_config.json".into(), config.to_string().into());
    changed
}

fn with(folder: &Folder, name: &str, content: impl Into<Vec<u8>>) -> Folder {
    let mut changed = folder.clone();
    changed.insert(name.into(), content.into());
    changed
}

fn without(folder: &Folder, name: &str) -> Folder {
    let mut changed = folder.clone();
    changed.remove(name);
    changed
}

/// Replaces text in the header of the safetensors file, and adjusts the header's length.
fn with_header(folder: &Folder, from: &str, to: &str) -> Folder {
    let bytes = &folder["adapter_model.safetensors"];
    let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    assert!(header.contains(from), "{from} is not in {header}");
    let header = header.replacen(from, to, 1);
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header.as_bytes());
    changed.extend(&bytes[8 + length..]);
    with(folder, "adapter_model.safetensors", changed)
}

async fn what_is_wrong_with_a_folder_is_reported_all_at_once(platform: &Platform, exported: &Folder) {
    const TENSORS: &str = "adapter_model.safetensors";
    let good = without(exported, "attune_manifest.json");
    let bytes = good[TENSORS].clone();
    let mut infinite = bytes.clone();
    infinite.splice(bytes.len() - 4.., f32::INFINITY.to_le_bytes());
    let other_base = String::from_utf8(exported["attune_manifest.json"].clone()).unwrap();
    let digest = get(platform, "/v1/base_models/tiny").await["digest"].as_str().unwrap().to_owned();
    let other_base = other_base.replace(&digest, &"0".repeat(64));
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let cases: [(Folder, &[&str]); 25] = [
        (without(&good, "adapter_config.json"), &["There is no adapter_config.json"]),
        (without(&good, TENSORS), &["There is no adapter_model.safetensors"]),
        (with(&good, "pytorch_model.bin", "x"), &["'pytorch_model.bin' is not a file of an adapter"]),
        (with(&good, "../evil", "x"), &["is not a file of an adapter"]),
        (with(&good, "adapter_config.json", "{"), &["adapter_config.json is not a JSON object"]),
        (with_config(&good, "peft_type", json!("IA3")), &["peft_type: IA3 is not supported; allowed: LORA"]),
        (with_config(&good, "bias", json!("all")), &["bias: all is not supported"]),
        (with_config(&good, "modules_to_save", json!(["lm_head"])), &["modules_to_save: lm_head is not supported"]),
        (with_config(&good, "rank_pattern", json!({"q_proj": 8})), &["rank_pattern: a map is not supported"]),
        (with_config(&good, "lora_alpha", json!(null)), &["lora_alpha: none is not supported"]),
        (with_config(&good, "init_lora_weights", json!("pissa")), &["init_lora_weights: pissa is not supported"]),
        (with_config(&good, "r", json!(0)), &["r: 0 is not supported"]),
        (with_config(&good, "r", json!(8)), &["has the shape [16, 64] instead of [8, 64]", "28 reasons"]),
        (
            with_config(&good, "target_modules", json!(["q_proj"])),
            &["k_proj.lora_A.weight' is not a tensor of this adapter over this base"],
        ),
        (
            with_config(&good, "base_model_name_or_path", json!("org/other")),
            &["is 'org/other', but the base is 'tiny'"],
        ),
        (with_header(&good, q, &q.replace("layers.0", "layers.9")), &["layers.9", &format!("'{q}' is missing")]),
        (with_header(&good, "[16,64]", "[64,16]"), &["has the shape [64, 16] instead of [16, 64]"]),
        (with_header(&good, "\"F32\",\"shape\":[16,64]", "\"F64\",\"shape\":[8,64]"), &["has the shape [8, 64]"]),
        (with(&good, TENSORS, &bytes[..bytes.len() - 1]), &["is not a whole safetensors file"]),
        (with(&good, TENSORS, [&bytes[..], b"x"].concat()), &["is not a whole safetensors file"]),
        (with(&good, TENSORS, b"\x80\x02}q\x00."), &["is not a whole safetensors file"]),
        (with(&good, TENSORS, infinite), &["contains 1 NaN or infinite values"]),
        (with(&good, "tokenizer.json", "{}"), &["tokenizer.json is not that of the base"]),
        (with(&good, "added_tokens.json", r#"{"<tool>": 900}"#), &["added_tokens.json", "'<tool>' (900)"]),
        (with(exported, "attune_manifest.json", other_base), &["states a base model with the digest 000"]),
    ];
    for (folder, reasons) in &cases {
        let (status, answer) = import(platform, folder, None).await;
        let error = &answer["error"];
        let said = error["message"].as_str().unwrap();
        assert_eq!((status, &error["code"]), (400, &json!("invalid_adapter")), "{reasons:?}: {answer}");
        assert!(reasons.iter().all(|reason| said.contains(reason)), "{reasons:?} in {said}");
    }
    let (status, answer) = import(platform, &good, Some(&"0".repeat(64))).await;
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("'base_digest' is 000"), "{answer}");
    let bad = with_config(&with_config(&without(&good, TENSORS), "bias", json!("all")), "r", json!(0));
    let (_, answer) = import(platform, &with(&bad, "optimizer.pt", "x"), None).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("for 4 reasons"), "{answer}");
    let (status, _) = platform.call(Method::GET, "/v1/adapters/bad", None).await.unwrap();
    assert_eq!(status, 404, "a refused import left an adapter");
    let renamed = with_config(&good, "base_model_name_or_path", json!("org/other"));
    let (status, taken) = import(platform, &renamed, Some(&digest)).await;
    assert_eq!(status, 200, "its digest says that it is the same base: {taken}");
}

async fn set(platform: &Platform, body: Value) -> (u16, Value) {
    platform.call(Method::PUT, "/v1/adapters/house/aliases/prod", Some(body)).await.unwrap()
}

async fn an_alias_moves_under_load_and_the_base_never_answers(platform: &Arc<Platform>, first: &str, second: &str) {
    let learnt = BTreeMap::from([(first.to_owned(), tiny::ANSWER), (second.to_owned(), OTHER)]);
    let (status, missing) = platform
        .call(
            Method::POST,
            "/v1/chat/completions",
            Some(json!({"model": "house@prod", "messages": [{"role": "user", "content": "x"}]})),
        )
        .await
        .unwrap();
    assert_eq!((status, &missing["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(set(platform, json!({"version": "1", "expected": "2"})).await.0, 409);
    assert_eq!(set(platform, json!({"version": "3"})).await.0, 400);
    assert_eq!(set(platform, json!({"version": "copy@1"})).await.0, 400, "another adapter's version");
    let (status, view) = set(platform, json!({"version": "1", "expected": null})).await;
    assert_eq!((status, &view["id"], &view["model"]), (200, &json!("house@prod"), &json!(first)), "{view}");

    let over = Arc::new(AtomicBool::new(false));
    let asking = (0..3).map(|_| {
        let (platform, over, learnt) = (platform.clone(), over.clone(), learnt.clone());
        tokio::spawn(async move {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                let (said, model) = says(&platform, "house@prod").await;
                assert_eq!(said, learnt[&model], "{model} gave an answer that it was not trained on");
                asked += 1;
            }
            asked
        })
    });
    let asking: Vec<_> = asking.collect();
    for step in 0..8 {
        let (from, to, model) = if step % 2 == 0 { ("1", second, second) } else { (second, "house@1", first) };
        let (status, moved) = set(platform, json!({"version": to, "expected": from})).await;
        assert_eq!((status, &moved["model"]), (200, &json!(model)), "{moved}");
        assert_eq!(says(platform, "house@prod").await.1, model, "the next request already means the new version");
    }
    over.store(true, Ordering::Relaxed);
    for task in asking {
        assert!(task.await.unwrap() > 0);
    }
    let moves = get(platform, "/v1/adapters/house/aliases/prod/moves").await;
    assert_eq!(moves["data"].as_array().unwrap().len(), 9);
    assert_eq!(get(platform, "/v1/models/house@prod").await["aliases"], json!(["house@prod"]));
}

/// Both versions answer for the alias while a canary runs, each with the answers that it was trained on, and the
/// serving process's counts are shown.
async fn a_canary_is_promoted_and_rolled_back(platform: &Platform, first: &str, second: &str) {
    let learnt = BTreeMap::from([(first.to_owned(), tiny::ANSWER), (second.to_owned(), OTHER)]);
    let attune = |arguments: &[&str]| platform.json(&[&["adapters"][..], arguments].concat()).unwrap();
    let alias = get(platform, "/v1/adapters/house/aliases/prod").await;
    assert_eq!(alias["model"], first, "{alias}");
    let alias = attune(&["canary", "house@prod", "2", "--percent", "50", "--max-latency-ratio", "1000"]);
    assert_eq!((&alias["canary"]["status"], &alias["canary"]["model"]), (&json!("running"), &json!(second)), "{alias}");
    let mut seen = BTreeMap::new();
    for i in 0..40 {
        let body = json!({"model": "house@prod", "messages": [{"role": "user", "content": "question 3"}],
            "temperature": 0, "max_tokens": 40, "user": format!("user {i}")});
        let (status, answer) = platform.call(Method::POST, "/v1/chat/completions", Some(body)).await.unwrap();
        assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
        let model = answer["model"].as_str().unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"], learnt[model], "{answer}");
        *seen.entry(model.to_owned()).or_insert(0) += 1;
    }
    assert!(seen.len() == 2 && seen.values().all(|count| *count >= 5), "{seen:?}");
    let alias = attune(&["promote", "house@prod"]);
    assert_eq!((&alias["model"], &alias["canary"]["status"]), (&json!(second), &json!("promoted")), "{alias}");
    assert_eq!(says(platform, "house@prod").await, (OTHER.to_owned(), second.to_owned()));
    let alias = attune(&["rollback", "house@prod"]);
    assert_eq!((&alias["model"], &alias["previous_version"]), (&json!(first), &Value::Null), "{alias}");
    assert_eq!(says(platform, "house@prod").await, (tiny::ANSWER.to_owned(), first.to_owned()));

    attune(&["shadow", "house@prod", "1", "--percent", "100"]);
    says(platform, "house@prod").await;
    let begun = std::time::Instant::now();
    loop {
        let shadow = get(platform, "/v1/adapters/house/aliases/prod").await["shadow"].clone();
        if shadow["compared"] == 1 {
            assert_eq!((&shadow["equal"], &shadow["mean_length_difference"]), (&json!(1), &json!(0.0)), "{shadow}");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{shadow}\n{}", platform.folder().log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    attune(&["shadow", "house@prod", "--stop"]);
    let metrics = attune(&["metrics", "house", "--window", "day"]);
    let versions = metrics["data"].as_array().unwrap();
    assert_eq!(versions.len(), 2, "{metrics}");
    for version in versions {
        let tiers = &version["tiers"];
        let found: u64 = ["memory", "disk", "store"].iter().map(|tier| tiers[tier].as_u64().unwrap()).sum();
        assert_eq!((version["requests"].as_u64(), &version["errors"]), (Some(found), &json!(0)), "{version}");
        assert!(version["ttft_ms"]["p95"].as_f64().unwrap() > 0.0 && version["tpot_ms"]["p50"].is_f64(), "{version}");
        assert!(tiers["memory"].as_u64() > Some(0) && version["usd_per_million_tokens"].is_f64(), "{version}");
    }
}

async fn what_an_alias_names_stays_and_what_is_deleted_is_gone(platform: &Platform, first: &str) {
    let path = format!("/v1/models/{first}");
    let (status, answer) = platform.call(Method::DELETE, &path, None).await.unwrap();
    assert!(status == 409 && answer["error"]["message"].as_str().unwrap().contains("house@prod"), "{answer}");
    platform.json(&["adapters", "alias", "delete", "house@prod"]).unwrap();
    let (status, answer) = platform.call(Method::DELETE, &path, None).await.unwrap();
    assert_eq!((status, &answer["id"], &answer["deleted"]), (200, &json!(first), &json!(true)), "{answer}");
    let chat = json!({"model": first, "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(platform.call(Method::POST, "/v1/chat/completions", Some(chat)).await.unwrap().0, 404);
    for path in [
        path.clone(),
        "/v1/models/house@1".into(),
        "/v1/models/house@prod".into(),
        format!("/v1/adapters/{first}"),
        "/v1/adapters/house@1/manifest".into(),
        format!("/v1/adapters/{first}/export"),
        format!("/v1/adapters/{first}/files/adapter_config.json"),
        "/v1/adapters/house/aliases/prod".into(),
    ] {
        assert_eq!(platform.call(Method::GET, &path, None).await.unwrap().0, 404, "{path}");
    }
    let (_, models) = platform.call(Method::GET, "/v1/models", None).await.unwrap();
    assert!(models["data"].as_array().unwrap().iter().all(|model| model["id"] != first), "{models}");
}
