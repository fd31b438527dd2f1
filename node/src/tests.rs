//! The cache and downloads against a small object server that breaks connections, sends wrong content, or ignores
//! ranges.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{ADAPTERS, Cache, Cached, NodeError, fetch, http_client, sha256_of_file};
use attune_domain::{bytes::Bytes, digest::Sha256, run::RemoteFile};
use axum::{
    Router,
    body::{Body, Bytes as Part},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::stream;

const LENGTH: usize = 300_000;

fn content() -> Vec<u8> {
    (0..LENGTH).map(|i| (i % 251) as u8).collect()
}

#[derive(Default)]
struct Seen {
    requests: AtomicU32,
    ranges: AtomicU32,
}

/// The first response breaks off after a third; later ones return the requested range.
async fn broken_once(State(seen): State<Arc<Seen>>, headers: HeaderMap) -> Response {
    let all = content();
    if seen.requests.fetch_add(1, Ordering::SeqCst) == 0 {
        let parts = [Ok(Part::from(all[..LENGTH / 3].to_vec())), Err(std::io::Error::other("the line broke"))];
        return Body::from_stream(stream::iter(parts)).into_response();
    }
    match headers.get("range").and_then(|value| value.to_str().ok()) {
        Some(range) => {
            seen.ranges.fetch_add(1, Ordering::SeqCst);
            let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
            (StatusCode::PARTIAL_CONTENT, all[start..].to_vec()).into_response()
        }
        None => all.into_response(),
    }
}

async fn served(seen: Arc<Seen>) -> String {
    let routes = Router::new()
        .route("/broken-once", get(broken_once))
        .route("/whole", get(|| async { content() }))
        .route(
            "/busy",
            get(|State(seen): State<Arc<Seen>>| async move {
                match seen.requests.fetch_add(1, Ordering::SeqCst) {
                    0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                    1 => StatusCode::CONFLICT.into_response(),
                    2 => StatusCode::PRECONDITION_FAILED.into_response(),
                    _ => content().into_response(),
                }
            }),
        )
        .with_state(seen);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    format!("http://{address}")
}

async fn described(base: &str, path: &str, folder: &Path) -> RemoteFile {
    let copy = folder.join("copy");
    std::fs::write(&copy, content()).unwrap();
    let (sha256, bytes) = sha256_of_file(&copy).await.unwrap();
    RemoteFile { name: "model.safetensors".into(), sha256, bytes: Bytes(bytes), url: format!("{base}/{path}") }
}

#[tokio::test]
async fn a_broken_download_continues_where_it_broke() {
    let (folder, seen) = (tempfile::tempdir().unwrap(), Arc::new(Seen::default()));
    let base = served(seen.clone()).await;
    let file = described(&base, "broken-once", folder.path()).await;
    let path = fetch(&http_client().unwrap(), &file, folder.path()).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    assert!(seen.requests.load(Ordering::SeqCst) >= 2);
    // The number of bytes that arrived before the break depends on the kernel; resuming is what this tests.
    assert!(seen.ranges.load(Ordering::SeqCst) <= 1);
}

#[tokio::test]
async fn a_busy_store_is_retried() {
    let (folder, seen) = (tempfile::tempdir().unwrap(), Arc::new(Seen::default()));
    let base = served(seen.clone()).await;
    let file = described(&base, "busy", folder.path()).await;
    fetch(&http_client().unwrap(), &file, folder.path()).await.unwrap();
    assert_eq!(seen.requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_changed_file_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = served(Arc::default()).await;
    let cache = Cache::open(&folder.path().join("cache")).unwrap();
    let client = http_client().unwrap();
    let good = described(&base, "whole", folder.path()).await;
    let lies = [
        RemoteFile { sha256: Sha256::from_digest([0; 32]), ..good.clone() },
        RemoteFile { bytes: Bytes(good.bytes.0 - 1), ..good.clone() },
        RemoteFile { bytes: Bytes(good.bytes.0 + 1), ..good.clone() },
    ];
    for lie in lies {
        let refused = cache.folder(&client, "base", "d1", &[lie]).await.unwrap_err();
        assert!(matches!(refused, NodeError::Changed { .. }), "{refused}");
    }
    let gone = RemoteFile { url: format!("{base}/nothing"), ..good.clone() };
    assert!(matches!(cache.folder(&client, "base", "d1", &[gone]).await, Err(NodeError::Refused { status: 404, .. })));
    let out = RemoteFile { name: "../x".into(), ..good };
    assert!(matches!(cache.folder(&client, "base", "d1", &[out]).await, Err(NodeError::BadName(_))));
    assert!(!folder.path().join("cache/base/d1").exists());
    assert_eq!(std::fs::read_dir(folder.path().join("cache/tmp")).unwrap().count(), 1); // only the lock file
}

#[tokio::test]
async fn a_complete_folder_is_fetched_once_and_a_damaged_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let base = served(Arc::default()).await;
    let cache = Cache::open(folder.path()).unwrap();
    let client = http_client().unwrap();
    let file = described(&base, "whole", folder.path()).await;
    let made = cache.folder(&client, "base", "d1", std::slice::from_ref(&file)).await.unwrap();
    let moved = RemoteFile { url: "http://127.0.0.1:9/nobody".into(), ..file.clone() };
    assert_eq!(*cache.folder(&client, "base", "d1", &[moved]).await.unwrap(), *made);
    std::fs::write(made.join("model.safetensors"), b"cut").unwrap();
    cache.folder(&client, "base", "d1", &[file]).await.unwrap();
    assert_eq!(std::fs::read(made.join("model.safetensors")).unwrap(), content());
}

#[test]
fn what_a_killed_process_left_is_cleared_by_the_next_who_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let first = Cache::open(folder.path()).unwrap();
    let left = first.scratch().unwrap().keep();
    let second = Cache::open(folder.path()).unwrap();
    assert!(left.exists(), "the first still works there");
    drop((first, second));
    Cache::open(folder.path()).unwrap();
    assert!(!left.exists());
}

#[tokio::test]
async fn limit_of_the_cache_removes_what_was_used_least_recently_and_nothing_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let base = served(Arc::default()).await;
    // A budget of two and a half folders.
    let cache = Cache::with_budget(&folder.path().join("cache"), LENGTH as u64 * 5 / 2).unwrap();
    let client = http_client().unwrap();
    let files = [described(&base, "whole", folder.path()).await];
    let is_there = |key: &str| folder.path().join("cache/adapter").join(key).exists();

    let first = cache.folder(&client, "adapter", "first", &files).await.unwrap();
    drop(cache.folder(&client, "adapter", "second", &files).await.unwrap());
    drop(cache.folder(&client, "adapter", "third", &files).await.unwrap());
    assert!(is_there("first") && !is_there("second") && is_there("third"), "the first is older, but in use");
    drop(first);
    std::thread::sleep(std::time::Duration::from_millis(10));
    drop(cache.folder(&client, "adapter", "first", &files).await.unwrap());
    drop(cache.folder(&client, "adapter", "fourth", &files).await.unwrap());
    assert!(is_there("first") && !is_there("third") && is_there("fourth"), "the first was used again");
    // All entries are in use: a needed folder is fetched anyway.
    let mut held = Vec::new();
    for key in ["first", "fourth", "fifth", "sixth"] {
        held.push(cache.folder(&client, "adapter", key, &files).await.unwrap());
    }
    assert!(["first", "fourth", "fifth", "sixth"].iter().all(|key| is_there(key)));
    let left = std::fs::read_dir(folder.path().join("cache/tmp")).unwrap().count();
    assert_eq!(left, 1, "the lock alone is left in tmp");
}

#[tokio::test]
async fn limit_of_the_adapters_in_the_cache_removes_adapters_only() {
    let folder = tempfile::tempdir().unwrap();
    let base = served(Arc::default()).await;
    let files = [described(&base, "whole", folder.path()).await];
    let one = Bytes(LENGTH as u64);
    let cache = Cache::open(&folder.path().join("cache")).unwrap().with_adapter_budget(Bytes(one.0 * 2));
    let client = http_client().unwrap();
    // The base is the least recently used entry.
    drop(cache.folder(&client, "base", "d1", &files).await.unwrap());
    for key in ["first", "second", "third"] {
        drop(cache.folder(&client, ADAPTERS, key, &files).await.unwrap());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let listed = |kind: &str| {
        let mut entries = cache.list(kind).unwrap();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries
    };
    let cached = |key: &str| Cached { key: key.into(), bytes: one };
    assert_eq!(listed(ADAPTERS), [cached("second"), cached("third")]);
    // The bases do not count for the budget of the adapters.
    drop(cache.folder(&client, "base", "d2", &files).await.unwrap());
    assert_eq!((listed("base").len(), listed(ADAPTERS).len()), (2, 2));
}

#[tokio::test]
async fn an_entry_is_forgotten_unless_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let base = served(Arc::default()).await;
    let files = [described(&base, "whole", folder.path()).await];
    let cache = Cache::open(&folder.path().join("cache")).unwrap();
    let used = cache.folder(&http_client().unwrap(), ADAPTERS, "one", &files).await.unwrap();
    assert!(!cache.forget(ADAPTERS, "one").unwrap() && used.is_dir());
    drop(used);
    assert!(cache.forget(ADAPTERS, "one").unwrap());
    assert!(!cache.holds(ADAPTERS, "one") && !cache.forget(ADAPTERS, "one").unwrap());
    assert!(matches!(cache.forget(ADAPTERS, "../base"), Err(NodeError::BadName(_))));
}

/// The file system of `/dev/full` is always full.
#[tokio::test]
async fn a_full_disk_is_an_error_of_its_own() {
    let base = served(Arc::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = described(&base, "whole", folder.path()).await;
    std::os::unix::fs::symlink("/dev/full", folder.path().join("model.safetensors")).unwrap();
    let refused = fetch(&http_client().unwrap(), &file, folder.path()).await.unwrap_err();
    assert!(matches!(refused, NodeError::DiskFull { .. }), "{refused}");
}
