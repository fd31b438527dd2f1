//! The base models that tenants request in attack tests, and their files.

use attune_tests::{platform::Platform, sha256, tenant::Tenant, tiny};
use reqwest::Method;
use serde_json::{Value, json};

/// Creates a safetensors file with this header and `data` bytes of zeros.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(header.as_bytes());
    whole.resize(whole.len() + data, 0);
    whole
}

/// Uploads `content`; returns its entry in a base model's list of files.
pub(crate) async fn file(tenant: &Tenant, name: &str, content: &[u8]) -> Value {
    let digest = sha256(content);
    let (status, view) = tenant.put_blob(&digest, content).await.unwrap();
    assert!(status == 200 || status == 201, "{name}: {status} {view}");
    json!({"name": name, "sha256": digest, "bytes": content.len()})
}

/// Uploads the files of the tests' tiny model; returns their entries in a base model's list of files.
pub(crate) async fn tiny_files(tenant: &Tenant, platform: &Platform, seed: u64) -> Vec<Value> {
    let folder = platform.folder().path(&format!("tiny-{seed}"));
    tiny::write(&folder, seed).unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        let content = std::fs::read(entry.path()).unwrap();
        files.push(file(tenant, entry.file_name().to_str().unwrap(), &content).await);
    }
    files
}

/// Requests a base model with these files; returns the status and the body.
pub(crate) async fn base(tenant: &Tenant, name: &str, files: &[Value]) -> (u16, Value) {
    tenant.call(Method::POST, "/v1/base_models", Some(json!({"name": name, "files": files}))).await.unwrap()
}
