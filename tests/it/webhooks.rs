//! Webhook deliveries to receivers on this machine: each kind of response, and signatures that the official libraries
//! verify.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::{
    house::{create, job},
    openai_client::python,
};

/// A received request.
#[derive(Debug, Clone)]
struct Received {
    path: String,
    headers: HeaderMap,
    body: String,
    at: Instant,
}

impl Received {
    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }

    fn signatures(&self) -> usize {
        self.headers["webhook-signature"].to_str().unwrap().split(' ').count()
    }
}

/// A response: its status, and a header with its value.
type Answer = (u16, &'static str, String);

/// A receiver that returns the prepared responses of a path, then 200.
#[derive(Clone, Default)]
struct Receiver {
    answers: Arc<Mutex<HashMap<String, VecDeque<Answer>>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    async fn start(self) -> String {
        let app = Router::new().fallback(answer).with_state(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    fn will_answer(&self, path: &str, status: u16, header: (&'static str, &str)) {
        let mut answers = self.answers.lock().unwrap();
        answers.entry(path.into()).or_default().push_back((status, header.0, header.1.into()));
    }

    fn at(&self, path: &str) -> Vec<Received> {
        self.received.lock().unwrap().iter().filter(|received| received.path == path).cloned().collect()
    }

    /// Waits until `path` has received `count` requests.
    async fn until(&self, path: &str, count: usize, platform: &Platform) -> Vec<Received> {
        let begun = Instant::now();
        while self.at(path).len() < count {
            assert!(
                begun.elapsed() < Duration::from_secs(40),
                "{path}: {:?}\n{}",
                self.at(path),
                platform.folder().log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.at(path)
    }
}

async fn answer(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    receiver.received.lock().unwrap().push(Received { path: path.clone(), headers, body, at: Instant::now() });
    let laid_out = receiver.answers.lock().unwrap().get_mut(&path).and_then(VecDeque::pop_front);
    match laid_out {
        Some((status, name, value)) => {
            (StatusCode::from_u16(status).unwrap(), [(name, value)], "not now").into_response()
        }
        None => "thank you".into_response(),
    }
}

/// Creates an endpoint; returns its ID and its secret.
fn endpoint(platform: &Platform, url: &str, events: &str) -> (String, String) {
    let made = platform.json(&["webhooks", "create", url, "--event", events]).unwrap();
    (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
}

/// Waits until `wanted` returns true for the newest delivery of an endpoint, and returns that delivery.
async fn delivery(platform: &Platform, endpoint: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let path = format!("/v1/webhook_endpoints/{endpoint}/deliveries?limit=1");
        let (status, found) = platform.call(Method::GET, &path, None).await.unwrap();
        assert_eq!(status, 200, "{found}");
        if wanted(&found["data"][0]) {
            return found["data"][0].clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{found}\n{}", platform.folder().log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_receivers_and_the_official_libraries_verify_them() {
    let platform = Platform::start_with("[webhooks]\nallow_loopback = true\n").unwrap();
    let receiver = Receiver::default();
    let url = receiver.clone().start().await;
    receiver.will_answer("/flaky", 500, ("x-nothing", ""));
    receiver.will_answer("/later", 503, ("retry-after", "8"));
    receiver.will_answer("/gone", 410, ("x-nothing", ""));
    receiver.will_answer("/moved", 301, ("location", &format!("{url}/moved-to")));
    let all = endpoint(&platform, &format!("{url}/all"), "*");
    let created = "fine_tuning.job.created";
    let flaky = endpoint(&platform, &format!("{url}/flaky"), created);
    let later = endpoint(&platform, &format!("{url}/later"), created);
    let gone = endpoint(&platform, &format!("{url}/gone"), created);
    let moved = endpoint(&platform, &format!("{url}/moved"), created);
    let refused = platform.attune(&["webhooks", "create", "http://169.254.169.254/"]).unwrap();
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");

    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let id = create(&platform, job(&file)).await;
    let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());

    let mut signed = every_step_is_reported(&platform, &receiver, &id, &all.1).await;
    a_failure_is_tried_again_and_a_wait_is_kept(&platform, &receiver, (&flaky, &later)).await;
    gone_is_gone_and_moved_is_not_followed(&platform, &receiver, (&gone.0, &moved.0)).await;
    a_delivery_is_replayed(&platform, &receiver, &flaky).await;
    signed.extend(a_rotation_signs_with_both(&platform, &receiver, &all).await);
    python_verifies(&platform, &signed);
    platform.json(&["webhooks", "delete", &all.0]).unwrap();
    assert_eq!(platform.attune(&["webhooks", "show", &all.0]).unwrap().status.code(), Some(5));
    platform.stop(Signal::SIGTERM).unwrap();
}

/// Returns a received request, a secret, and whether the signature is valid for it, as input of the Python script.
fn signed(received: &Received, secret: &str, valid: bool) -> Value {
    let headers: HashMap<&str, &str> =
        received.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    json!({"secret": secret, "headers": headers, "body": received.body, "valid": valid})
}

async fn every_step_is_reported(platform: &Platform, receiver: &Receiver, id: &str, secret: &str) -> Vec<Value> {
    let begun = Instant::now();
    let is_told = |name: &str| receiver.at("/all").iter().any(|r| r.event()["type"] == name);
    while !is_told("fine_tuning.job.succeeded") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", platform.folder().log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let received = receiver.at("/all");
    let verifier = Webhook::new(secret).unwrap();
    for one in &received {
        verifier.verify(one.body.as_bytes(), &one.headers).unwrap();
        assert_eq!(
            (one.id(), &one.headers["content-type"]),
            (one.event()["id"].as_str().unwrap(), &"application/json".parse().unwrap())
        );
    }
    let types: BTreeSet<String> = received.iter().map(|r| r.event()["type"].as_str().unwrap().to_owned()).collect();
    let steps = ["created", "queued", "provisioning", "running", "succeeded"].map(|s| format!("fine_tuning.job.{s}"));
    for wanted in steps.iter().map(String::as_str).chain(["fine_tuning.checkpoint.created", "adapter_version.created"])
    {
        assert!(types.contains(wanted), "{wanted}: {types:?}");
    }
    let last = received.iter().find(|r| r.event()["type"] == "fine_tuning.job.succeeded").unwrap();
    assert_eq!(last.event()["data"], json!({ "id": id }));
    let mut forged = signed(last, secret, false);
    forged["body"] = last.body.replace(id, "ftjob-other").into();
    received.iter().map(|one| signed(one, secret, true)).chain([forged]).collect()
}

async fn a_failure_is_tried_again_and_a_wait_is_kept(
    platform: &Platform,
    receiver: &Receiver,
    (flaky, later): (&(String, String), &(String, String)),
) {
    let tries = receiver.until("/flaky", 2, platform).await;
    assert_eq!(tries[0].id(), tries[1].id());
    let waited = tries[1].at - tries[0].at;
    assert!((4.0..9.0).contains(&waited.as_secs_f64()), "{waited:?}");
    let tries = receiver.until("/later", 2, platform).await;
    let waited = tries[1].at - tries[0].at;
    assert!(waited >= Duration::from_secs(8), "{waited:?}");
    Webhook::new(&later.1).unwrap().verify(tries[1].body.as_bytes(), &tries[1].headers).unwrap();
    let told = delivery(platform, &flaky.0, |d| d["status"] == "delivered").await;
    let attempts = told["attempts"].as_array().unwrap();
    assert_eq!((&attempts[0]["status_code"], &attempts[0]["response_excerpt"]), (&json!(500), &json!("not now")));
    assert_eq!((&attempts[1]["status_code"], &attempts[1]["error"]), (&json!(200), &Value::Null));
    assert!(attempts[1]["latency_ms"].as_i64().is_some(), "{told}");
}

async fn gone_is_gone_and_moved_is_not_followed(platform: &Platform, receiver: &Receiver, (gone, moved): (&str, &str)) {
    assert_eq!(delivery(platform, gone, |d| d["status"] != "pending").await["status"], "failed");
    let view = platform.json(&["webhooks", "show", gone]).unwrap();
    assert_eq!((&view["status"], &view["disabled_reason"]), (&json!("disabled"), &json!("gone")));
    let refused = platform.attune(&["webhooks", "test", gone]).unwrap();
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let told = delivery(platform, moved, |d| !d["attempts"][0]["ended_at"].is_null()).await;
    assert_eq!(told["attempts"][0]["status_code"], 301);
    assert!(told["attempts"][0]["error"].as_str().unwrap().contains("redirects"), "{told}");
    assert!(receiver.at("/moved-to").is_empty());
}

async fn a_delivery_is_replayed(platform: &Platform, receiver: &Receiver, flaky: &(String, String)) {
    let told = delivery(platform, &flaky.0, |d| d["status"] == "delivered").await;
    let again = platform.json(&["webhooks", "replay", &flaky.0, told["id"].as_str().unwrap()]).unwrap();
    assert_eq!(again["status"], "pending");
    let tries = receiver.until("/flaky", 3, platform).await;
    assert_eq!(tries[2].id(), tries[0].id());
    let told = delivery(platform, &flaky.0, |d| d["status"] == "delivered").await;
    assert_eq!(told["attempts"].as_array().unwrap().len(), 3, "{told}");
}

async fn a_rotation_signs_with_both(platform: &Platform, receiver: &Receiver, all: &(String, String)) -> Vec<Value> {
    let tests = || -> Vec<Received> {
        let is_test = |r: &Received| r.event()["type"] == "webhook_endpoint.test";
        receiver.at("/all").into_iter().filter(is_test).collect()
    };
    let fire = async |count: usize| {
        platform.json(&["webhooks", "test", &all.0]).unwrap();
        let begun = Instant::now();
        while tests().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", platform.folder().log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tests().pop().unwrap()
    };
    let rotated = platform.json(&["webhooks", "rotate", &all.0]).unwrap();
    let new = rotated["secret"].as_str().unwrap();
    let both = fire(1).await;
    assert_eq!((both.signatures(), &both.event()["data"]), (2, &json!({ "id": all.0 })));
    let rotated = platform.json(&["webhooks", "rotate", &all.0, "--overlap-seconds", "0"]).unwrap();
    let newest = rotated["secret"].as_str().unwrap();
    let alone = fire(2).await;
    assert_eq!(alone.signatures(), 1);
    for (received, secret, valid) in
        [(&both, all.1.as_str(), true), (&both, new, true), (&alone, newest, true), (&alone, new, false)]
    {
        let verified = Webhook::new(secret).unwrap().verify(received.body.as_bytes(), &received.headers);
        assert_eq!(verified.is_ok(), valid);
    }
    vec![
        signed(&both, &all.1, true),
        signed(&both, new, true),
        signed(&alone, newest, true),
        signed(&alone, new, false),
    ]
}

fn python_verifies(platform: &Platform, signed: &[Value]) {
    let path = platform.folder().path("deliveries.json");
    fs::write(&path, serde_json::to_vec(signed).unwrap()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/webhooks.py");
    let output = Command::new(python()).args([script, text(&path).unwrap()]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}
