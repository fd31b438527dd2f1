//! Attacks a02, a15 and a18: small imports that exhaust the API's memory: a `config.json` with millions of layers, long
//! safetensors headers, and forms with only headers.

use std::{fs, time::Duration};

use attune_tests::{
    platform::{Platform, client},
    tenant::Tenant,
};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::base_models::{base, file, safetensors};

/// Returns a field of a process's status in MiB.
fn mib(process: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn api(platform: &Platform) -> i32 {
    let processes = platform.descendants().unwrap();
    processes.into_iter().find(|(_, command)| command.contains("attune-api")).unwrap().0
}

async fn folder(tenant: &Tenant, config: Value, weights: &[u8]) -> Vec<Value> {
    vec![
        file(tenant, "config.json", config.to_string().as_bytes()).await,
        file(tenant, "tokenizer.json", b"{}").await,
        file(tenant, "model.safetensors", weights).await,
    ]
}

fn config(layers: u64) -> Value {
    json!({"model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 272, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false})
}

/// Creates a safetensors header of about `bytes` bytes, of empty tensors whose names begin with `begin` and end with
/// `end`.
fn header(bytes: usize, begin: char, end: &str) -> String {
    let mut header = String::with_capacity(bytes + 128);
    for i in 0.. {
        header.push(if i == 0 { '{' } else { ',' });
        header += &format!("\"{begin}{i:07}{end}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
        if header.len() >= bytes {
            break;
        }
    }
    header + "}"
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a15_attack_a02_attack_a18_imports_do_not_grow_the_api() {
    let platform = Platform::start().unwrap();
    let tenant = Tenant::new(&platform, "attacker").await.unwrap();
    let process = api(&platform);
    let before = mib(process, "VmRSS");

    for layers in [300_000, 6_000_000, u64::MAX >> 1] {
        let files = folder(&tenant, config(layers), &safetensors("{}", 0)).await;
        let (status, told) = base(&tenant, "layers", &files).await;
        assert_eq!((status, &told["error"]["code"]), (400, &json!("invalid_base_model")), "{told}");
    }
    // The longest header that the API reads, and a longer one, several concurrently; the API still responds.
    for (bytes, reason) in [((4 << 20) - 100, "is not a tensor"), (12 << 20, "the maximum is 4194304")] {
        let files = folder(&tenant, config(2), &safetensors(&header(bytes, 't', ""), 0)).await;
        let asked = (0..4).map(|i| {
            let (tenant, files) = (tenant.clone(), files.clone());
            tokio::spawn(async move { base(&tenant, &format!("header-{i}"), &files).await })
        });
        let asked: Vec<_> = asked.collect();
        for answer in asked {
            let (status, told) = answer.await.unwrap();
            assert_eq!(status, 400, "{told}");
            assert!(told["error"]["message"].as_str().unwrap().contains(reason), "{told}");
        }
    }
    many_headers(&tenant).await;
    large_adapter_files(&platform, &tenant).await;
    endless_form(&platform, &tenant).await;

    let grown = mib(process, "VmHWM").saturating_sub(before);
    println!("FIGURE api_peak_rss_growth_mib_under_attack {grown}");
    assert_eq!(api(&platform), process, "the api died:\n{}", platform.folder().log());
    assert!(grown < 256, "the api has grown by {grown} MiB");
}

/// Imports shards whose headers have only names that no model needs, but that are allowed.
async fn many_headers(tenant: &Tenant) {
    let mut files = folder(tenant, config(2), &safetensors("{}", 0)).await;
    for shard in ['a', 'b', 'c'] {
        let weights = safetensors(&header(3 << 20, shard, ".rotary_emb.inv_freq"), 0);
        files.push(file(tenant, &format!("{shard}.safetensors"), &weights).await);
    }
    let (status, told) = base(tenant, "shards", &files).await;
    assert_eq!(status, 400, "{told}");
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("c.safetensors") && message.contains("8388608 bytes together"), "{message}");
}

/// Imports other files of an adapter that are too long to be parsed, or to be stored.
async fn large_adapter_files(platform: &Platform, tenant: &Tenant) {
    platform.import_tiny().unwrap();
    for (name, bytes, status, reason) in [
        ("chat_template.jinja", (4 << 20) + 1, 400, "longer than 4194304 bytes"),
        ("README.md", (32 << 20) + 1, 413, "larger than 33554432 bytes"),
    ] {
        let form = Form::new().text("name", "large").text("base_model", "tiny");
        let form = form.part("files", Part::bytes(vec![b'x'; bytes]).file_name(name));
        let request =
            client().post(format!("{}/v1/adapters", platform.url)).bearer_auth(&tenant.api_key).multipart(form);
        let answer = request.send().await.unwrap();
        let (given, told) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert!(given == status && told.contains(reason), "{name}: {given} {told}");
    }
}

/// Sends a form of 200,000 parts with unknown file names, as fast as the API reads it.
async fn endless_form(platform: &Platform, tenant: &Tenant) {
    let head = format!(
        "POST /v1/adapters HTTP/1.1\r\nHost: attune\r\nAuthorization: Bearer {}\r\nContent-Type: multipart/form-data; \
         boundary=b\r\nContent-Length: 40000000\r\n\r\n",
        tenant.api_key
    );
    let name = "x".repeat(60);
    let part = format!("--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"{name}\"\r\n\r\n\r\n");
    let mut socket = tokio::net::TcpStream::connect(platform.url.strip_prefix("http://").unwrap()).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let thousand = part.repeat(1000);
    for _ in 0..200 {
        socket.write_all(thousand.as_bytes()).await.unwrap();
    }
    socket.write_all(b"--b--\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("more than 100 parts"), "{answer}");
}
