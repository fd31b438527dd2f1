//! Metrics, traces and logs of a whole platform, and the page that lists the metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use attune_process::metrics;
use attune_tests::{
    platform::{Folder, Platform, client},
    tiny,
};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as Any,
};
use prost::Message;
use regex_lite::Regex;
use serde_json::{Value, json};

use crate::house::job;

/// The span of the caller that creates a job.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A metric: its kind and the names of its labels.
type Table = BTreeMap<String, (String, BTreeSet<String>)>;

/// Returns the metrics of docs/METRICS.md.
fn page() -> Table {
    let page = include_str!("../../docs/METRICS.md");
    let row = Regex::new(r"(?m)^\| `([a-z0-9_]+)` \| (counter|gauge|histogram) \| ([^|]*)\|").unwrap();
    let labels = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    row.captures_iter(page).map(|row| (row[1].to_owned(), (row[2].to_owned(), labels(&row[3])))).collect()
}

#[test]
fn the_page_of_metrics_is_the_table_of_the_programs() {
    let labels = |metric: &dyn metrics::Metric| metric.labels().iter().map(|&label| label.to_owned()).collect();
    let table: Table =
        metrics::all().map(|metric| (metric.name().to_owned(), (metric.kind().to_owned(), labels(metric)))).collect();
    assert_eq!(page(), table);
}

/// Checks that a scrape contains metrics of the page only, and returns their names.
fn names(scrape: &str) -> BTreeSet<String> {
    let (page, mut names) = (page(), BTreeSet::new());
    let sample = Regex::new(r"^([a-z0-9_]+?)(_bucket|_sum|_count)?(?:\{(.*)\})? \S+$").unwrap();
    let label = Regex::new(r#"([a-z]+)="(?:[^"\\]|\\.)*""#).unwrap();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let found = sample.captures(line).ok_or(line).unwrap();
        let whole = format!("{}{}", &found[1], found.get(2).map_or("", |suffix| suffix.as_str()));
        let name = if page.contains_key(&whole) { whole } else { found[1].to_owned() };
        let (_, labels) = page.get(&name).ok_or(format!("{name} is not in docs/METRICS.md")).unwrap();
        let inside = found.get(3).map_or("", |labels| labels.as_str());
        let used: BTreeSet<_> =
            label.captures_iter(inside).map(|label| label[1].to_owned()).filter(|name| name != "le").collect();
        assert_eq!(&used, labels, "{line}");
        names.insert(name);
    }
    assert!(scrape.ends_with("# EOF\n"), "{scrape}");
    names
}

/// Returns the addresses at which a log says that metrics are published.
fn addresses(log: &str) -> BTreeSet<String> {
    let address = Regex::new(r"http://127\.0\.0\.1:\d+/metrics").unwrap();
    address.find_iter(log).map(|found| found.as_str().to_owned()).collect()
}

async fn scrape(address: &str) -> String {
    let answer = client().get(address).send().await.unwrap();
    let media_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(media_type.starts_with("application/openmetrics-text; version=1.0.0"), "{media_type}");
    answer.text().await.unwrap()
}

/// Scrapes until the program of this name has all of `wanted`.
async fn wait_for(addresses: &BTreeSet<String>, program: &str, wanted: &[&str]) {
    let begun = Instant::now();
    loop {
        let mut missing: Vec<_> = wanted.to_vec();
        for address in addresses {
            let text = scrape(address).await;
            if text.contains(&format!("attune_build_info{{program=\"{program}\"")) {
                let names = names(&text);
                missing.retain(|name| !names.contains(*name));
            }
        }
        if missing.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{program} has no {missing:?} at {addresses:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A span that the collector received.
#[derive(Debug, Clone)]
struct Received {
    program: String,
    name: String,
    trace: String,
    parent: String,
}

type Spans = Arc<Mutex<Vec<Received>>>;

/// Starts the other side of the export, an OpenTelemetry collector; returns its address.
async fn collector(spans: Spans) -> String {
    let router = Router::new().route("/v1/traces", post(receive)).with_state(spans);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn receive(State(spans): State<Spans>, headers: HeaderMap, body: Bytes) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for group in request.resource_spans {
        let attributes = group.resource.unwrap_or_default().attributes;
        let program = attributes.into_iter().find(|attribute| attribute.key == "service.name");
        let program = program.and_then(|program| match program.value?.value? {
            Any::StringValue(program) => Some(program),
            _ => None,
        });
        let program = program.expect("a resource has a service.name");
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let (trace, parent) = (hex(&span.trace_id), hex(&span.parent_span_id));
            spans.lock().unwrap().push(Received { program: program.clone(), name: span.name, trace, parent });
        }
    }
}

/// Waits until the trace has each of these spans of these programs, and returns all its spans.
async fn trace(spans: &Spans, wanted: &[(&str, &str)]) -> Vec<Received> {
    let begun = Instant::now();
    loop {
        let all = spans.lock().unwrap().clone();
        let found: Vec<_> = all.iter().filter(|span| span.trace == PARENT[3..35]).cloned().collect();
        let is_there =
            |(program, name): &(&str, &str)| found.iter().any(|span| span.program == *program && span.name == *name);
        if wanted.iter().all(is_there) {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{found:?} of {all:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns the texts of the logs of trainers (`run_`) or replicas (`replica_`).
fn node_logs(data: &Path, prefix: &str) -> Vec<String> {
    let logs = fs::read_dir(data.join("node/logs")).unwrap().map(|entry| entry.unwrap());
    let ours = logs.filter(|log| log.file_name().to_string_lossy().starts_with(prefix));
    ours.map(|log| fs::read_to_string(log.path()).unwrap()).collect()
}

/// Creates a job as a traced program does, and returns it when it has ended.
async fn traced_job(platform: &Platform, file: &str) -> Value {
    let request = client().post(format!("{}/v1/fine_tuning/jobs", platform.url)).bearer_auth(&platform.api_key);
    let answer = request.header("traceparent", PARENT).json(&job(file)).send().await.unwrap();
    let created: Value = answer.json().await.unwrap();
    let id = created["id"].as_str().ok_or(&created).unwrap().to_owned();
    platform.ended(&id, Duration::from_secs(120)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_leaves_one_trace_and_the_metrics_of_the_page() {
    let spans = Spans::default();
    let address = collector(spans.clone()).await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", address.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("ATTUNE_METRICS__LISTEN", "127.0.0.1:0"),
        ("ATTUNE_METRICS_LISTEN", "127.0.0.1:0"),
        ("ATTUNE_LOG_FORMAT", "json"),
    ];
    let platform = Platform::start_in(Folder::new().unwrap(), &variables).unwrap();
    platform.import_tiny().unwrap();
    let done = traced_job(&platform, &platform.upload(&tiny::rows(24)).unwrap()).await;
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    let body = json!({"model": done["fine_tuned_model"], "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8});
    let (status, answer) = platform.call(reqwest::Method::POST, "/v1/chat/completions", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());

    let wanted = [
        ("attune-api", "request"),
        ("attune-scheduler", "validate"),
        ("attune-scheduler", "start"),
        ("attune-trainer", "run"),
        ("attune-trainer", "train"),
        ("attune-trainer", "publish"),
    ];
    let found = trace(&spans, &wanted).await;
    let caller = &PARENT[36..52];
    assert!(found.iter().any(|span| span.program == "attune-api" && span.parent == caller), "{found:?}");
    let requests = found.iter().filter(|span| span.program == "attune-api").count();
    assert!(requests > 1, "the trainer's reports belong to the trace: {found:?}");

    let listeners = addresses(&platform.folder().log());
    assert_eq!(listeners.len(), 2, "{}", platform.folder().log());
    wait_for(&listeners, "attune-api", &API).await;
    wait_for(&listeners, "attune-scheduler", &SCHEDULER).await;
    let data = platform.folder().data();
    let replicas: BTreeSet<_> = node_logs(&data, "replica_").iter().flat_map(|log| addresses(log)).collect();
    wait_for(&replicas, "attune-serving", &SERVING).await;

    let logs = node_logs(&data, "run").concat();
    let lines: Vec<Value> = logs.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_of_the_run = |line: &&Value| line["spans"][0]["name"] == "run" && line["spans"][0]["job.id"] == done["id"];
    assert!(lines.iter().filter(is_of_the_run).all(|line| line["fields"]["message"].is_string()), "{logs}");
    assert!(lines.iter().any(|line| is_of_the_run(&line)), "{logs}");
}

/// Metrics that the API has after a job and an answer.
const API: [&str; 14] = [
    "attune_adapters_published_total",
    "attune_checkpoint_bytes_total",
    "attune_db_connections",
    "attune_db_wait_seconds",
    "attune_http_request_seconds",
    "attune_http_requests_in_flight",
    "attune_http_requests_total",
    "attune_memory_ratio",
    "attune_object_request_seconds",
    "attune_object_requests_total",
    "attune_training_step_seconds",
    "attune_training_steps_total",
    "attune_training_tokens_total",
    "process_resident_memory_bytes",
];

/// Metrics that the scheduler has after a job and an answer.
const SCHEDULER: [&str; 15] = [
    "attune_db_connections",
    "attune_gauges_timestamp_seconds",
    "attune_job_starts_total",
    "attune_launches_total",
    "attune_memory_margin_ratio",
    "attune_offer_free_slots",
    "attune_offer_memory_bytes",
    "attune_offer_reserved_bytes",
    "attune_plan_seconds",
    "attune_queue_messages_total",
    "attune_queue_oldest_wait_seconds",
    "attune_reconcile_seconds",
    "attune_reconcile_timestamp_seconds",
    "attune_scheduler_leads",
    "attune_webhook_backlog",
];

/// Metrics that a serving process has after an answer.
const SERVING: [&str; 10] = [
    "attune_adapter_bytes",
    "attune_adapters_loaded",
    "attune_batch_size",
    "attune_forward_seconds",
    "attune_generated_tokens_total",
    "attune_http_requests_total",
    "attune_kv_cache_bytes",
    "attune_prompt_tokens_total",
    "attune_sequences_running",
    "attune_time_to_first_token_seconds",
];
