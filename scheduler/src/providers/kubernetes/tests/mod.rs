//! Tests with a scripted API server over HTTP, and with recordings of a real one (`scheduler/testdata/kubernetes`).

use std::{sync::Arc, time::Duration};

use attune_domain::bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Notify;

use self::server::Server;
use super::provider::Kubernetes;
use crate::{
    catalogue::SharedCatalogue,
    config::kubernetes::KubernetesConfig,
    providers::provider::{Ended, Launch, Process, Program, Provider, Resources},
};

mod discovered;
mod launching;
mod objects;
mod reasons;
mod server;
mod watching;

const URL: &str = "http://attune-api:8080";

/// The longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns a configuration with these additional settings.
fn config(settings: &Value) -> KubernetesConfig {
    let mut all = json!({"work_dir": "/tmp", "image": "attune-node:1", "namespace": "default", "request_seconds": 5,
        "offer": [{"name": "cpu", "memory_bytes": 8u64 << 30, "threads": 4, "slots": 2}]});
    for (key, value) in settings.as_object().unwrap() {
        all[key.as_str()] = value.clone();
    }
    let config: KubernetesConfig = serde_json::from_value(all).unwrap();
    config.check().unwrap();
    config
}

/// Creates a provider of the API server at an address.
async fn provider_at(address: &str, settings: &Value) -> Kubernetes {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let mut config = config(settings);
    config.kubeconfig = Some(path);
    Kubernetes::open(&config, URL, SharedCatalogue::default(), Arc::new(Notify::new())).await.unwrap()
}

async fn provider(server: &Server) -> Kubernetes {
    provider_at(&server.address.to_string(), &json!({})).await
}

fn launch(program: Program, name: &str) -> Launch {
    let resources = Resources { offer: "cpu/2".into(), memory: Bytes::mib(1), threads: 3 };
    Launch { program, name: name.into(), token: "secret-token".to_owned().into(), resources }
}

/// Waits until a condition is true.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// Returns the listed process of a handle; `None`: it is not listed, or the processes cannot be listed.
async fn process(kubernetes: &Kubernetes, handle: &str) -> Option<Process> {
    kubernetes.list().await.ok()?.into_iter().find(|process| process.handle == handle)
}

/// Returns the pending reason of a handle.
async fn pending(kubernetes: &Kubernetes, handle: &str) -> Option<String> {
    Some(process(kubernetes, handle).await?.pending?.message)
}

/// Returns the end of a handle.
async fn ended(kubernetes: &Kubernetes, handle: &str) -> Option<Ended> {
    process(kubernetes, handle).await?.ended
}

/// Returns a file of `scheduler/testdata/kubernetes`.
fn recorded(name: &str) -> Value {
    let path = format!("{}/testdata/kubernetes/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
