//! The import of a base model from a scripted hub, and the deletion of a base model that is in use.

use std::{collections::BTreeMap, fs, process::Command, sync::Arc};

use attune_tests::{
    platform::{Platform, program, text},
    sha256, tiny,
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::get,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The repository's files by name.
type Files = Arc<BTreeMap<String, Vec<u8>>>;

async fn description(State(files): State<Files>, headers: HeaderMap) -> Json<Value> {
    assert_eq!(headers["authorization"], "Bearer hf_token");
    let file = |(name, content): (&String, &Vec<u8>)| {
        let lfs = json!({"sha256": sha256(content), "size": content.len()});
        json!({"rfilename": name, "size": content.len(), "lfs": lfs})
    };
    let siblings: Vec<_> = files.iter().map(file).collect();
    Json(json!({"sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}}))
}

async fn file(State(files): State<Files>, Path((commit, name)): Path<(String, String)>) -> impl IntoResponse {
    match files.get(&name).filter(|_| commit == COMMIT) {
        Some(content) => {
            let etag = format!("\"{}\"", sha256(content));
            (StatusCode::OK, [("x-repo-commit", COMMIT.to_owned()), ("x-linked-etag", etag)], content.clone())
                .into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Starts a hub with the tiny model, and returns its address.
async fn hub(platform: &Platform) -> String {
    let folder = platform.folder().path("repository");
    tiny::write(&folder, 7).unwrap();
    let files = fs::read_dir(&folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
    });
    let files: Files = Arc::new(files.collect());
    let app = Router::new()
        .route("/api/models/tests/Tiny/revision/v1", get(description))
        .route("/tests/Tiny/resolve/{commit}/{name}", get(file))
        .with_state(files);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_model_is_imported_by_repository_and_revision_and_deleted_when_nothing_needs_it() {
    let platform = Platform::start().unwrap();
    let address = hub(&platform).await;
    let cache = platform.folder().path("cache");
    let import = |model: &str| {
        let mut command = Command::new(program("attune").unwrap());
        command.args(["models", "import", model, "--json"]);
        command.env("HF_ENDPOINT", &address).env("HF_TOKEN", "hf_token").env("XDG_CACHE_HOME", text(&cache).unwrap());
        command.env("ATTUNE_API_URL", &platform.url).env("ATTUNE_API_KEY", &platform.api_key).output().unwrap()
    };
    let refused = import("hf:tests/Other");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no repository tests/Other with this revision: main"), "{said}");

    let imported = import("hf:tests/Tiny@v1");
    assert!(imported.status.success(), "{imported:?}");
    let view: Value = serde_json::from_slice(&imported.stdout).unwrap();
    let host = address.strip_prefix("http://").unwrap();
    let origin = json!({"host": host, "repository": "tests/Tiny", "revision": "v1", "commit": COMMIT});
    assert_eq!((&view["name"], &view["origin"]), (&json!("tiny"), &origin));
    assert_eq!(fs::read_dir(cache.join("attune/hub")).unwrap().count(), 0, "the download is removed");
    let (_, found) = platform.call(Method::GET, "/v1/base_models/tiny", None).await.unwrap();
    assert_eq!((&found["origin"], &found["license"]), (&origin, &json!("apache-2.0")));

    let deployment = json!({"name": "mine", "model": "tiny", "min_replicas": 0, "max_replicas": 1});
    let (status, made) = platform.call(Method::POST, "/v1/deployments", Some(deployment)).await.unwrap();
    assert_eq!(status, 200, "{made}");
    let (status, body) = platform.call(Method::DELETE, "/v1/base_models/tiny", None).await.unwrap();
    assert_eq!(status, 409, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("the deployment 'mine'"), "{body}");
    let path = format!("/v1/deployments/{}", made["id"].as_str().unwrap());
    let (status, body) = platform.call(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let (status, body) = platform.call(Method::DELETE, "/v1/base_models/tiny", None).await.unwrap();
    assert_eq!((status, &body["deleted"]), (200, &json!(true)), "{body}");
    platform.stop(Signal::SIGTERM).unwrap();
}
