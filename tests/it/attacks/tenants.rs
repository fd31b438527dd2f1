//! Projects with their own API keys, and the files that they upload.

use attune_tests::platform::{Platform, client};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A project's API key, and the platform's URL.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    url: String,
    pub(crate) key: String,
}

/// Returns the SHA-256 in lower-case hex.
pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Creates a safetensors file with this header and `data` bytes of zeros.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(header.as_bytes());
    whole.resize(whole.len() + data, 0);
    whole
}

impl Tenant {
    /// Creates a project of the platform's first organization, and an API key with every scope except `admin`.
    pub(crate) async fn new(platform: &Platform, name: &str) -> Self {
        let made = attune_tests::tenant::Tenant::new(platform, name).await.unwrap();
        Self { url: platform.url.clone(), key: made.api_key }
    }

    /// Sends a request; returns the status and the body's JSON, or null if the body is not JSON.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = client().request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    /// Uploads `content` under `digest`; returns the status and the body's JSON.
    pub(crate) async fn put(&self, digest: &str, content: &[u8]) -> (u16, Value) {
        let path = format!("{}/v1/base_models/blobs/{digest}", self.url);
        let answer = client().put(path).bearer_auth(&self.key).body(content.to_vec()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Uploads `content`; returns its entry in a base model's list of files.
    pub(crate) async fn file(&self, name: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        let (status, told) = self.put(&digest, content).await;
        assert!(status == 200 || status == 201, "{name}: {status} {told}");
        json!({"name": name, "sha256": digest, "bytes": content.len()})
    }

    /// Uploads the files of the tests' tiny model; returns their entries in a base model's list of files.
    pub(crate) async fn tiny_files(&self, platform: &Platform, seed: u64) -> Vec<Value> {
        let folder = platform.folder().path(&format!("tiny-{seed}"));
        attune_tests::tiny::write(&folder, seed).unwrap();
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let content = std::fs::read(entry.path()).unwrap();
            files.push(self.file(entry.file_name().to_str().unwrap(), &content).await);
        }
        files
    }

    /// Requests a base model with these files.
    pub(crate) async fn base(&self, name: &str, files: &[Value]) -> (u16, Value) {
        self.call(Method::POST, "/v1/base_models", Some(json!({"name": name, "files": files}))).await
    }
}
