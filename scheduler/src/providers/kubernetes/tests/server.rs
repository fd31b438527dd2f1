//! A scripted API server over HTTP. It keeps objects, and answers as the recordings of a real one do; a test may
//! replace its next answer to a request, and end or expire its watches.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::Response,
};
use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// The next answer to a kind of request.
pub(super) enum Answer {
    /// This status and body, and a `Retry-After` in seconds.
    Status(u16, Value, Option<u64>),
    /// The request is carried out, and the connection is cut before its answer.
    Lost,
    /// The request is carried out after this time.
    Slow(Duration),
}

/// A line of a watch, or an end of the watches that are open.
#[derive(Clone)]
enum Entry {
    Event { version: u64, line: String, labels: Option<Value> },
    Close,
    Cut,
}

/// The state of the server.
#[derive(Default)]
struct Cluster {
    version: u64,
    /// The objects by resource and name.
    objects: BTreeMap<(String, String), Value>,
    /// The events of each resource.
    logs: BTreeMap<String, Vec<Entry>>,
    /// The requests, such as `POST jobs`, with their bodies; those for watches with their parameters.
    requests: Vec<(String, Value)>,
    answers: VecDeque<(String, Answer)>,
}

struct Shared {
    cluster: Mutex<Cluster>,
    grown: watch::Sender<u64>,
}

/// The server. It ends when it is dropped.
pub(super) struct Server {
    /// The server's address.
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl Shared {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }
}

impl Cluster {
    /// Stores an object with the next version, and adds an event.
    fn put(&mut self, resource: &str, mut object: Value) -> Value {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (resource.to_owned(), name.clone());
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{name}-{}", self.version));
        }
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key, object.clone());
        self.log(resource, kind, &object);
        object
    }

    fn remove(&mut self, resource: &str, name: &str) -> Option<Value> {
        let mut object = self.objects.remove(&(resource.to_owned(), name.to_owned()))?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log(resource, "DELETED", &object);
        Some(object)
    }

    fn log(&mut self, resource: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let labels = (kind != "BOOKMARK" && kind != "ERROR").then(|| object["metadata"]["labels"].clone());
        let event = Entry::Event { version: self.version, line, labels };
        self.logs.entry(resource.to_owned()).or_default().push(event);
    }

    fn take_answer(&mut self, request: &str) -> Option<Answer> {
        let at = self.answers.iter().position(|(one, _)| one == request)?;
        self.answers.remove(at).map(|(_, answer)| answer)
    }
}

impl Server {
    /// Starts a server without objects.
    pub(super) async fn start() -> Self {
        let shared = Arc::new(Shared { cluster: Mutex::default(), grown: watch::Sender::new(0) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(handle).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, _task: AbortOnDropHandle::new(task) }
    }

    /// Replaces the next answer to a request such as `POST jobs`.
    pub(super) fn answer(&self, request: &str, answer: Answer) {
        self.shared.cluster().answers.push_back((request.to_owned(), answer));
    }

    /// Adds or replaces an object.
    pub(super) fn put(&self, resource: &str, object: Value) {
        self.shared.cluster().put(resource, object);
        self.grow();
    }

    /// Deletes an object.
    pub(super) fn remove(&self, resource: &str, name: &str) {
        self.shared.cluster().remove(resource, name).unwrap();
        self.grow();
    }

    /// Returns an object.
    pub(super) fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.shared.cluster().objects.get(&(resource.to_owned(), name.to_owned())).cloned()
    }

    /// Returns the bodies of all requests such as `POST jobs`.
    pub(super) fn requests(&self, request: &str) -> Vec<Value> {
        let cluster = self.shared.cluster();
        cluster.requests.iter().filter(|(one, _)| one == request).map(|(_, body)| body.clone()).collect()
    }

    /// Sends a bookmark with the next version.
    pub(super) fn bookmark(&self, resource: &str) {
        let mut cluster = self.shared.cluster();
        cluster.version += 1;
        let metadata = json!({"resourceVersion": cluster.version.to_string(), "creationTimestamp": null});
        cluster.log(resource, "BOOKMARK", &json!({"kind": "Job", "apiVersion": "batch/v1", "metadata": metadata}));
        drop(cluster);
        self.grow();
    }

    /// Sends the error of an expired version.
    pub(super) fn expire(&self, resource: &str) {
        let mut cluster = self.shared.cluster();
        cluster.version += 1;
        cluster.log(resource, "ERROR", &status(410, "Expired", "too old resource version: 1 (2)"));
        drop(cluster);
        self.grow();
    }

    /// Ends the open watches: in an orderly way, or within a line.
    pub(super) fn end_watches(&self, resource: &str, is_cut: bool) {
        let entry = if is_cut { Entry::Cut } else { Entry::Close };
        self.shared.cluster().logs.entry(resource.to_owned()).or_default().push(entry);
        self.grow();
    }

    fn grow(&self) {
        self.shared.grown.send_modify(|count| *count += 1);
    }
}

/// Returns a `Status` object, as an API server answers errors.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
}

/// A selector of labels: `key=value,key=value`.
#[derive(Clone)]
struct Selector(Vec<(String, String)>);

impl Selector {
    fn new(text: &str) -> Self {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn selects(&self, labels: &Value) -> bool {
        self.0.iter().all(|(key, value)| labels[key.as_str()] == *value.as_str())
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let at = path.iter().position(|part| ["jobs", "pods", "secrets", "nodes"].contains(part)).unwrap();
    let (resource, name) = (path[at], path.get(at + 1).copied());
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let query: BTreeMap<String, String> = query.into_owned().collect();
    let is_watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let verb = if is_watch { "WATCH" } else { parts.method.as_str() };
    let answer = {
        let mut cluster = shared.cluster();
        let request = format!("{verb} {resource}");
        cluster.requests.push((request.clone(), if is_watch { json!(query) } else { body.clone() }));
        cluster.take_answer(&request)
    };
    match answer {
        Some(Answer::Status(code, body, retry_after)) => return respond(code, &body, retry_after),
        Some(Answer::Slow(time)) => tokio::time::sleep(time).await,
        Some(Answer::Lost) => {
            carry_out(&shared, &parts.method, (resource, name), body);
            let cut = stream::iter([Ok(Bytes::from_static(b"{")), Err(io::Error::other("cut"))]);
            return Response::new(Body::from_stream(cut));
        }
        None => {}
    }
    let selector = Selector::new(query.get("labelSelector").map_or("", String::as_str));
    if is_watch {
        let from = query["resourceVersion"].parse().unwrap();
        return Response::new(Body::from_stream(events(shared, resource, from, selector)));
    }
    let (code, mut answer) = carry_out(&shared, &parts.method, (resource, name), body);
    if let Some(items) = answer["items"].as_array_mut() {
        items.retain(|object| selector.selects(&object["metadata"]["labels"]));
    }
    respond(code, &answer, None)
}

fn respond(code: u16, body: &Value, retry_after: Option<u64>) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.to_string().parse().unwrap());
    }
    response
}

/// Carries out a request, and returns its status and its answer.
fn carry_out(shared: &Shared, method: &Method, (resource, name): (&str, Option<&str>), body: Value) -> (u16, Value) {
    let mut cluster = shared.cluster();
    let not_found = |name: &str| (404, status(404, "NotFound", &format!("{resource} \"{name}\" not found")));
    let found = name.and_then(|name| cluster.objects.get(&(resource.to_owned(), name.to_owned())).cloned());
    let answer = match (method.as_str(), name, found) {
        ("POST", None, _) => {
            let name = body["metadata"]["name"].as_str().unwrap().to_owned();
            if cluster.objects.contains_key(&(resource.to_owned(), name.clone())) {
                let exists = format!("{resource} \"{name}\" already exists");
                return (409, status(409, "AlreadyExists", &exists));
            }
            (201, cluster.put(resource, body))
        }
        ("PATCH", Some(_), Some(mut object)) => {
            merge(&mut object, &body);
            (200, cluster.put(resource, object))
        }
        ("DELETE", Some(name), Some(object)) => {
            let wanted = &body["preconditions"]["uid"];
            if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                return (409, status(409, "Conflict", "the UID in the precondition does not match"));
            }
            cluster.remove(resource, name);
            (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
        }
        ("GET", Some(_), Some(object)) => (200, object),
        ("GET", None, _) => {
            let all = cluster.objects.iter().filter(|((kind, _), _)| kind == resource);
            let items: Vec<_> = all.map(|(_, object)| object.clone()).collect();
            let metadata = json!({"resourceVersion": cluster.version.to_string()});
            (200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
        }
        (_, Some(name), None) => not_found(name),
        _ => panic!("{method} {resource}"),
    };
    drop(cluster);
    shared.grown.send_modify(|count| *count += 1);
    answer
}

/// Applies a merge patch (RFC 7386).
fn merge(object: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            if !object.is_object() {
                *object = json!({});
            }
            for (key, value) in fields {
                merge(&mut object[key.as_str()], value);
            }
        }
        other => *object = other.clone(),
    }
}

/// Returns the events after a version, without end.
fn events(
    shared: Arc<Shared>,
    resource: &str,
    from: u64,
    selector: Selector,
) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let resource = resource.to_owned();
    let is_later = |entry: &Entry| matches!(entry, Entry::Event { version, .. } if *version > from);
    let start = {
        let cluster = shared.cluster();
        let log = cluster.logs.get(&resource).map(Vec::as_slice).unwrap_or_default();
        log.iter().position(is_later).unwrap_or(log.len())
    };
    stream::unfold(Some(start), move |at| {
        let (shared, resource, selector) = (shared.clone(), resource.clone(), selector.clone());
        async move {
            let mut at = at?;
            let mut grown = shared.grown.subscribe();
            loop {
                let entry = shared.cluster().logs.get(&resource).and_then(|log| log.get(at)).cloned();
                match entry {
                    Some(Entry::Event { labels: Some(labels), .. }) if !selector.selects(&labels) => at += 1,
                    Some(Entry::Event { line, .. }) => return Some((Ok(line.into()), Some(at + 1))),
                    Some(Entry::Close) => return None,
                    Some(Entry::Cut) => return Some((Err(io::Error::other("cut")), None)),
                    None => grown.changed().await.ok()?,
                }
            }
        }
    })
}
