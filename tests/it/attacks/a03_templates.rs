//! Untrusted chat templates, in base models and in adapters: they cannot crash a process, exhaust its memory, or delay
//! other tenants.

use std::{fs, path::PathBuf, time::Duration};

use attune_tests::{
    platform::{Platform, client, text},
    tenant::Tenant,
    tiny,
};
use nix::sys::signal::Signal;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

/// A template that prints 100 MB for a row of 60 bytes.
const BOMB: &str = "{%- set s = 'a' * 1000000 -%}{%- for i in range(100) -%}{{ s }}{%- endfor -%}";

/// The maximum growth of a process's resident memory, in bytes.
const MAX_GROWTH: u64 = 64 << 20;

/// Imports the tiny model with another template, and returns its name.
fn base(platform: &Platform, name: &str, template: &str) -> String {
    let folder: PathBuf = platform.folder().path(name);
    tiny::write(&folder, 7).unwrap();
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    platform.json(&["models", "import", text(&folder).unwrap(), "--name", name]).unwrap();
    name.to_owned()
}

/// Returns the ID of the platform's process of this name, and its peak resident memory in bytes.
fn resident(platform: &Platform, program: &str) -> (i32, u64) {
    let processes = platform.descendants().unwrap();
    let (id, _) = processes.iter().find(|(_, name)| name.contains(program)).unwrap();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    (*id, line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10)
}

/// Checks that the process has not exited, and that its peak memory has not grown by [`MAX_GROWTH`] or more.
fn within_bounds(platform: &Platform, program: &str, before: (i32, u64)) {
    let now = resident(platform, program);
    assert_eq!(now.0, before.0, "{program} died");
    let grown = now.1.saturating_sub(before.1);
    assert!(grown < MAX_GROWTH, "{program} grew by {} MiB", grown >> 20);
}

async fn job(platform: &Platform, model: &str, file: &str) -> Value {
    let body = json!({"model": model, "training_file": file, "adapter": {"rank": 2}, "trainer": {"max_steps": 1}});
    let (status, job) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{job}");
    platform.ended(job["id"].as_str().unwrap(), Duration::from_secs(60)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a03_templates_that_print_without_end_are_refused_and_no_process_grows() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(4)).unwrap();
    // A first preview loads everything that is loaded once, so that it is not counted.
    let preview = format!("/v1/files/{file}/preview");
    let body = |model: &str| Some(json!({"model": model, "rows": [1]}));
    assert_eq!(platform.call(Method::POST, &preview, body("tiny")).await.unwrap().0, 200);
    let bomb = base(&platform, "bomb", BOMB);
    let (api, scheduler) = (resident(&platform, "attune-api"), resident(&platform, "attune-scheduler"));
    let (status, refused) = platform.call(Method::POST, &preview, body(&bomb)).await.unwrap();
    assert_eq!(status, 400, "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("prints more than"), "{refused}");
    let estimate = json!({"model": bomb, "training_file": file});
    let (status, refused) = platform.call(Method::POST, "/v1/fine_tuning/estimates", Some(estimate)).await.unwrap();
    assert_eq!(status, 400, "{refused}");
    let (status, report) =
        platform.call(Method::GET, &format!("/v1/files/{file}/report?model={bomb}"), None).await.unwrap();
    assert_eq!((status, report["unusable_rows"]["rows"].as_u64()), (200, Some(4)), "{report}");
    let failed = job(&platform, &bomb, &file).await;
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("failed"), &json!("invalid_training_file")),
        "{failed}"
    );
    within_bounds(&platform, "attune-api", api);
    within_bounds(&platform, "attune-scheduler", scheduler);
    attack_a23(&platform, &file).await;
    platform.stop(Signal::SIGTERM).unwrap();
}

/// Checks that an exception with U+0000 in its message becomes a job's error, without that character.
async fn attack_a23(platform: &Platform, file: &str) {
    let base = base(platform, "nul", "{{ raise_exception('a\\u0000b') }}");
    let failed = job(platform, &base, file).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("messages: ab"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a08_chats_of_thousands_of_messages_delay_no_other() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let victim = Tenant::new(&platform, "victim").await.unwrap();
    let message =
        |i: usize| json!({"role": if i.is_multiple_of(2) { "user" } else { "assistant" }, "content": "x".repeat(470)});
    let row = json!({"messages": (0..2046).map(message).collect::<Vec<_>>()}).to_string();
    let file = platform.upload(&[row.as_str(); 3].join("\n")).unwrap();
    let report = format!("/v1/files/{file}/report?model=tiny");
    let begun = std::time::Instant::now();
    let (status, found) = platform.call(Method::GET, &report, None).await.unwrap();
    assert_eq!((status, found["unusable_rows"]["rows"].as_u64()), (200, Some(3)), "{found}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let path = format!("/v1/files/{file}/preview");
    let preview = || platform.call(Method::POST, &path, Some(json!({"model": "tiny", "rows": [1, 2, 3]})));
    let theirs = async {
        let file = victim.upload("fine-tune", "rows.jsonl", tiny::rows(4)).await.unwrap();
        let begun = std::time::Instant::now();
        let path = format!("/v1/files/{file}/preview");
        let answer = victim.call(Method::POST, &path, Some(json!({"model": "tiny", "rows": [1]}))).await.unwrap();
        (answer, begun.elapsed())
    };
    let (one, two, three, ((status, rows), took)) = tokio::join!(preview(), preview(), preview(), theirs);
    assert_eq!(status, 200, "{rows}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    for (status, refused) in [one, two, three].map(Result::unwrap) {
        assert_eq!(status, 400, "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().contains("split it into several rows"), "{refused}");
    }
    platform.stop(Signal::SIGTERM).unwrap();
}

/// Creates the part of a file of an adapter's folder.
fn part(name: &str, content: Vec<u8>) -> Part {
    Part::bytes(content).file_name(name.to_owned())
}

async fn import(platform: &Platform, name: &str, base: &str, files: Vec<(String, Vec<u8>)>) -> (u16, Value) {
    let mut form = Form::new().text("name", name.to_owned()).text("base_model", base.to_owned());
    for (file, content) in files {
        form = form.part("files", part(&file, content));
    }
    let request = client().post(format!("{}/v1/adapters", platform.url)).bearer_auth(&platform.api_key).multipart(form);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/cases").join(name)
}

fn folder(path: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(case(path)).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

async fn chat(platform: &Platform, model: &Value) -> (u16, Value) {
    let mut body: Value = serde_json::from_slice(&fs::read(case("10-template/request.json")).unwrap()).unwrap();
    body["model"] = model.clone();
    platform.call(Method::POST, "/v1/chat/completions", Some(body)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_an_adapters_template_is_honoured_and_attack_a20_is_bounded() {
    let platform = Platform::start().unwrap();
    platform.json(&["models", "import", text(&case("10-template/base")).unwrap(), "--name", "tiny"]).unwrap();
    let (status, answer) = chat(&platform, &json!("tiny")).await;
    assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &json!(21)), "{answer}");
    for name in ["in-jinja", "in-config", "in-config-named"] {
        let (status, version) = import(&platform, name, "tiny", folder(&format!("10-template/{name}"))).await;
        assert_eq!(status, 200, "{version}");
        assert!(version["chat_template_sha256"].is_string(), "{version}");
        let (status, answer) = chat(&platform, &version["model"]).await;
        assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &json!(29)), "{name}: {answer}");
    }
    let mut unnamed = folder("10-template/in-config");
    unnamed.retain(|(name, _)| name != "tokenizer_config.json");
    unnamed
        .push(("tokenizer_config.json".into(), br#"{"chat_template": [{"name": "rag", "template": "x"}]}"#.to_vec()));
    let (status, refused) = import(&platform, "unnamed", "tiny", unnamed).await;
    assert_eq!(status, 400, "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("none of them 'default'"), "{refused}");

    // a20: an adapter over a base that other tenants use has a template with unbounded output.
    let mut bomb = folder("10-template/in-jinja");
    bomb.retain(|(name, _)| name != "chat_template.jinja");
    bomb.push(("chat_template.jinja".into(), BOMB.as_bytes().to_vec()));
    let (status, version) = import(&platform, "bomb", "tiny", bomb).await;
    assert_eq!(status, 200, "{version}");
    let before = resident(&platform, "attune-serving");
    let (status, refused) = chat(&platform, &version["model"]).await;
    assert_eq!(status, 400, "{refused}");
    within_bounds(&platform, "attune-serving", before);
    platform.stop(Signal::SIGTERM).unwrap();
}
