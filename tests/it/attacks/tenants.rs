//! Projects with keys of their own, and what they put into a platform.

use attune_tests::platform::{Platform, client};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A project's key at a platform.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    url: String,
    pub(crate) key: String,
}

/// Lower-case hex.
pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A safetensors file with this header and `data` bytes of zeros.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(header.as_bytes());
    whole.resize(whole.len() + data, 0);
    whole
}

impl Tenant {
    /// A new project of the platform's first organization, and a key of it with every scope but `admin`.
    pub(crate) async fn new(platform: &Platform, name: &str) -> Self {
        let made = attune_tests::tenant::Tenant::new(platform, name).await.unwrap();
        Self { url: platform.url.clone(), key: made.api_key }
    }

    /// One request; gives the status, and the body's JSON (null if it has none).
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = client().request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    /// Puts `content` under `digest`; gives the status, and the body's JSON.
    pub(crate) async fn put(&self, digest: &str, content: &[u8]) -> (u16, Value) {
        let path = format!("{}/v1/base_models/blobs/{digest}", self.url);
        let answer = client().put(path).bearer_auth(&self.key).body(content.to_vec()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Puts `content`, and gives its entry in a base model's list of files.
    pub(crate) async fn file(&self, name: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        let (status, told) = self.put(&digest, content).await;
        assert!(status == 200 || status == 201, "{name}: {status} {told}");
        json!({"name": name, "sha256": digest, "bytes": content.len()})
    }

    /// Puts the files of the tests' tiny model, and gives their entries in a base model's list.
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

    /// Asks for a base model of these files.
    pub(crate) async fn base(&self, name: &str, files: &[Value]) -> (u16, Value) {
        self.call(Method::POST, "/v1/base_models", Some(json!({"name": name, "files": files}))).await
    }
}
