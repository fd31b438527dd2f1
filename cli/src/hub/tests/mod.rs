//! Downloads from a scripted hub: redirects to another host, refusals, interruptions and wrong content.

mod server;

use std::{fs, path::Path, time::Duration};

use serde_json::json;

use self::server::{Act, Request, Response, hex_of, serve};
use crate::{
    error::{CliError, Result},
    hub::{
        address::HubModel,
        client::{Hub, Patience},
        download,
    },
};

const TOKEN: &str = "hf_secret";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &str = "{}";
const TOKENIZER: &str = "{\"a\": 1}";
/// The Git blobs of these, as `git hash-object --stdin` prints them.
const CONFIG_ETAG: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";
const TOKENIZER_ETAG: &str = "4a036f56bb619924ec4189bd84ed716c766971ae";
const WEIGHTS: &str = "weights of a model, which are longer than a few bytes";

/// A hub whose weights are at another host.
struct Hubs {
    hub: Hub,
    folder: tempfile::TempDir,
}

/// Returns the hub's answer. `weights` may replace that to a request of the weights.
fn hub_answer(request: &Request, cdn: &str, weights: &dyn Fn(&Request) -> Option<Response>) -> Response {
    assert_eq!(request.header("authorization").as_deref(), Some(format!("Bearer {TOKEN}").as_str()));
    let sha256 = hex_of(WEIGHTS);
    let lfs = json!({"sha256": sha256, "size": WEIGHTS.len()});
    let siblings = json!([
        {"rfilename": "README.md", "size": 5},
        {"rfilename": "config.json", "size": CONFIG.len()},
        {"rfilename": "tokenizer.json", "size": TOKENIZER.len()},
        {"rfilename": "model.safetensors", "size": WEIGHTS.len(), "lfs": lfs},
    ]);
    let resolved = format!("/a/b/resolve/{COMMIT}");
    match request.path.as_str() {
        "/api/models/a/b/revision/refs%2Fpr%2F1?blobs=true" => {
            let card = json!({"license": ["other"], "license_name": "Tests-1.0"});
            Response::ok(&json!({"sha": COMMIT, "siblings": siblings, "cardData": card}).to_string())
        }
        path if path == format!("{resolved}/config.json") => {
            Response::ok(CONFIG).with("ETag", &format!("\"{CONFIG_ETAG}\"")).with("X-Repo-Commit", COMMIT)
        }
        path if path == format!("{resolved}/tokenizer.json") => {
            Response::ok(TOKENIZER).with("ETag", &format!("W/\"{TOKENIZER_ETAG}\""))
        }
        path if path == format!("{resolved}/model.safetensors") => weights(request).unwrap_or_else(|| {
            Response::new(302)
                .with("Location", &format!("{cdn}/object?Signature=x"))
                .with("X-Repo-Commit", COMMIT)
                .with("X-Linked-Etag", &format!("\"{sha256}\""))
                .with("X-Linked-Size", &WEIGHTS.len().to_string())
        }),
        _ => Response::new(404),
    }
}

/// Answers from the first requested byte on.
fn part_of_weights(request: &Request) -> Response {
    let from = request.header("range").map(|range| {
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().to_owned();
        from.parse::<usize>().unwrap()
    });
    match from {
        None => Response::ok(WEIGHTS),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", WEIGHTS.len() - 1, WEIGHTS.len());
            Response { status: 206, ..Response::ok(&WEIGHTS[from..]) }.with("Content-Range", &range)
        }
    }
}

impl Hubs {
    /// Starts both hosts; `cdn` answers the requests of the weights.
    fn new(cdn: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::with(cdn, |_| None)
    }

    fn with(
        cdn: impl Fn(&Request) -> Response + Send + Sync + 'static,
        weights: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let cdn = serve(move |request| {
            assert_eq!(request.header("authorization"), None, "the token is sent to the hub alone");
            cdn(request)
        });
        let endpoint = serve(move |request| hub_answer(request, &cdn, &weights));
        Self { hub: hub(&endpoint), folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn download(&self) -> Result<()> {
        let model = HubModel::parse("a/b@refs/pr/1").unwrap();
        let resolved = download::resolve(&self.hub, model).await?;
        assert_eq!(resolved.commit, COMMIT);
        assert_eq!(resolved.license().as_deref(), Some("tests-1.0"));
        download::all(&self.hub, &resolved, self.path()).await
    }

    fn weights(&self) -> String {
        fs::read_to_string(self.path().join("model.safetensors")).unwrap()
    }
}

fn hub(endpoint: &str) -> Hub {
    drop(rustls::crypto::ring::default_provider().install_default());
    let patience = Patience { silence: Duration::from_millis(500), pause: Duration::from_millis(10), tries: 3 };
    Hub::new(Some(endpoint.into()), Some(TOKEN.into()), patience).unwrap()
}

fn message(result: Result<()>) -> String {
    let error: CliError = result.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let message = error.to_string();
    assert!(!message.contains(TOKEN) && !message.contains("Signature"), "{message}");
    message
}

#[tokio::test]
async fn a_model_is_downloaded_by_its_commit_and_the_token_stays_at_the_hub() {
    let hubs = Hubs::new(part_of_weights);
    hubs.download().await.unwrap();
    let mut names: Vec<String> =
        fs::read_dir(hubs.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(hubs.weights(), WEIGHTS);
    assert_eq!(fs::read_to_string(hubs.path().join("tokenizer.json")).unwrap(), TOKENIZER);
}

#[tokio::test]
async fn an_interrupted_download_is_resumed_from_its_first_missing_byte() {
    // The first connection breaks, the second one stalls.
    let hubs = Hubs::new(|request| match request.header("range").as_deref() {
        None => Response { act: Act::CloseAfter(10), ..part_of_weights(request) },
        Some("bytes=10-") => Response { act: Act::StallAfter(7), ..part_of_weights(request) },
        Some(range) => {
            assert_eq!(range, "bytes=17-");
            part_of_weights(request)
        }
    });
    hubs.download().await.unwrap();
    assert_eq!(hubs.weights(), WEIGHTS);
}

#[tokio::test]
async fn a_later_import_resumes_a_download_and_keeps_whole_files() {
    let hubs = Hubs::new(|request| {
        assert_eq!(request.header("range").as_deref(), Some("bytes=20-"));
        part_of_weights(request)
    });
    let part = hubs.path().join("model.safetensors.part");
    fs::write(&part, &WEIGHTS[..20]).unwrap();
    hubs.download().await.unwrap();
    assert_eq!((hubs.weights().as_str(), part.exists()), (WEIGHTS, false));
    // No request of the weights: it would have no range.
    hubs.download().await.unwrap();
    assert_eq!(hubs.weights(), WEIGHTS);
}

#[tokio::test]
async fn a_host_that_never_continues_is_abandoned_and_the_part_stays() {
    let hubs = Hubs::new(|request| Response { act: Act::StallAfter(0), ..part_of_weights(request) });
    let part = hubs.path().join("model.safetensors.part");
    fs::write(&part, &WEIGHTS[..5]).unwrap();
    let message = message(hubs.download().await);
    assert!(message.contains("Repeat the import to resume it."), "{message}");
    assert_eq!(fs::read_to_string(&part).unwrap(), WEIGHTS[..5]);
}

#[tokio::test]
async fn content_of_another_size_or_digest_is_refused() {
    let wrong = WEIGHTS.replace("model", "m0del");
    let hubs = Hubs::new(move |_| Response::ok(&wrong));
    let text = message(hubs.download().await);
    assert!(text.contains("It was removed; import again."), "{text}");
    assert!(!hubs.path().join("model.safetensors.part").exists());

    let long = format!("{WEIGHTS} and more");
    let hubs = Hubs::new(move |_| Response::ok(&long));
    let text = message(hubs.download().await);
    assert!(text.contains("sent more than the 53 bytes of model.safetensors"), "{text}");

    let zeros = "0".repeat(64);
    for (header, value, part) in [
        ("X-Linked-Size", "7", "with another size"),
        ("X-Repo-Commit", "f00", "of another commit"),
        ("X-Linked-Etag", zeros.as_str(), "with another digest than it stated"),
    ] {
        let value = value.to_owned();
        let hubs = Hubs::with(part_of_weights, move |_| Some(Response::ok(WEIGHTS).with(header, &value)));
        let text = message(hubs.download().await);
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_gated_model_a_missing_one_and_a_failing_hub_are_named() {
    for (status, part) in [
        (401, "set HF_TOKEN to a token that may read it"),
        (403, "accept its conditions on its page"),
        (404, "no repository a/b with this revision: main"),
        (500, "responded with 500 Internal Server Error. Retry later."),
        (418, "responded with 418"),
    ] {
        let hub = hub(&serve(move |_| Response::new(status)));
        let resolved = download::resolve(&hub, HubModel::parse("a/b").unwrap()).await;
        let text = message(resolved.map(drop));
        assert!(text.contains(part), "{text}");
    }
    let hub = hub(&serve(|_| Response::ok("{\"sha\": \"main\", \"siblings\": []}")));
    let text = message(download::resolve(&hub, HubModel::parse("a/b").unwrap()).await.map(drop));
    assert!(text.contains("a commit that is not 40 hex digits"), "{text}");
}

#[tokio::test]
async fn limit_redirects_are_few_and_lead_to_http_only_from_http() {
    let hub_of_loops = hub(&serve(|request| Response::new(307).with("Location", &request.path)));
    let text = message(download::resolve(&hub_of_loops, HubModel::parse("a/b").unwrap()).await.map(drop));
    assert!(text.contains("more than 5 redirects"), "{text}");
    for to in ["file:///etc/passwd", "http://"] {
        let hub = hub(&serve(move |_| Response::new(302).with("Location", to)));
        let text = message(download::resolve(&hub, HubModel::parse("a/b").unwrap()).await.map(drop));
        assert!(text.contains("a redirect to an"), "{text}");
    }
}

#[test]
fn a_hub_is_named_by_its_host() {
    assert_eq!(hub("http://127.0.0.1:8080/mirror").host(), "127.0.0.1:8080");
    assert_eq!(hub("https://hub.example").host(), "hub.example");
    for wrong in ["hub.example", "ftp://hub.example"] {
        assert_eq!(Hub::new(Some(wrong.into()), None, Patience::default()).err().unwrap().exit_code(), 2);
    }
}
