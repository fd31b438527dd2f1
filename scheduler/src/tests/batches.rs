//! Batches from their claim to their end, with a real PostgreSQL, an S3 server over a folder and a scripted replica.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use attune_domain::{
    batch::{BatchEndpoint, BatchState},
    bytes::Bytes,
    digest::Sha256,
    id::{BaseModelId, BatchId},
    serve::{FinishReason, GenerateEvent, GenerateRequest, Priority, Prompt, ReplicaReport},
};
use attune_inference::{config as inference, context::Inference};
use attune_store::{
    adapters::base_model,
    batches::{
        batch::{self, Batch, NewBatch},
        batch_queue::Claims,
    },
    files::{
        file::{self, NewFile},
        objects::{Objects, blob_key},
    },
    queue::EnsureReplica,
    replica::{self, ServedBase},
    testing::{self, rows},
};
use attune_tests::object_store;
use axum::{Json, Router, body::Body, routing::post};
use futures::stream;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{House, Remembers};
use crate::{
    batches::{context::Batches, error::BatchError, work::one},
    tasks::Handle,
};

/// The prompt that the replica never answers.
const NO_ANSWER: &str = "no answer";

/// The prompts that the replica received, in order, with their priorities.
type Received = Arc<Mutex<Vec<(String, Priority)>>>;

/// A platform whose only process is a scripted replica.
struct World {
    house: House,
    batches: Batches,
    received: Received,
    address: String,
    _folder: tempfile::TempDir,
}

/// Starts a replica that answers every prompt with `yes`, and returns its address.
async fn scripted_replica(received: Received) -> String {
    let generate = move |Json(request): Json<GenerateRequest>| {
        let received = received.clone();
        async move {
            let text = match &request.prompt {
                Prompt::Text { text } => text.clone(),
                Prompt::Chat { messages, .. } => messages.last().unwrap().content.clone().unwrap(),
                Prompt::Tokens { .. } => panic!("a text was expected"),
            };
            received.lock().unwrap().push((text.clone(), request.priority));
            if text == NO_ANSWER {
                return Body::from_stream(stream::pending::<Result<String, Infallible>>());
            }
            let events = [
                GenerateEvent::Started {
                    prompt_tokens: 1,
                    cached_tokens: 0,
                    echo: None,
                    adapter: None,
                    tier: None,
                    queued_ms: None,
                },
                GenerateEvent::Piece { choice: 0, text: "yes".into(), tokens: vec![] },
                GenerateEvent::Finished {
                    choice: 0,
                    finish_reason: FinishReason::Stop,
                    stop_string: false,
                    end_tokens: vec![],
                },
                GenerateEvent::Done { completion_tokens: 2 },
            ];
            Body::from(events.map(|event| serde_json::to_string(&event).unwrap() + "\n").concat())
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = Router::new().route("/generate", post(generate));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

impl World {
    async fn new(pool: PgPool) -> Self {
        let house = House::new(pool, Remembers { memory: Bytes::mib(64_000), ..Remembers::default() }).await;
        let folder = tempfile::tempdir().unwrap();
        let objects = testing::objects_at(&object_store::serve(folder.path()).await.unwrap());
        objects.ensure_bucket().await.unwrap();
        let serving = inference::Serving { wait_seconds: 1, ..inference::Serving::default() };
        let context = Inference::new(house.app.pool.clone(), objects, serving, inference::Prices::default()).unwrap();
        let batches = Batches::new(context, house.app.leader.clone(), 2);
        let received = Received::default();
        let address = scripted_replica(received.clone()).await;
        let world = Self { house, batches, received, address, _folder: folder };
        world.serve(world.house.seed.base_model_id).await;
        world
    }

    /// Lets the replica serve a base model.
    async fn serve(&self, base: BaseModelId) {
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        let replica_id = replica::ensure(&mut conn, ServedBase::as_imported(base)).await.unwrap().replica_id;
        EnsureReplica { replica_id }.handle(self.house.app.clone()).await.unwrap();
        let report = json!({"address": self.address, "active_requests": 0, "resident_adapters": [], "failed": null});
        let ready: ReplicaReport = serde_json::from_value(report).unwrap();
        replica::take_report(&mut conn, replica_id, &ready).await.unwrap();
    }

    /// Imports a base model that no replica serves.
    async fn other_base(&self) -> BaseModelId {
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        let architecture = base_model::get(&mut conn, self.house.seed.base_model_id).await.unwrap().architecture;
        let new = base_model::NewBaseModel {
            name: "other",
            architecture: &architecture,
            files: &[],
            origin: None,
            license: None,
        };
        base_model::insert(&mut conn, None, &new).await.unwrap().base_model_id
    }

    /// Creates a batch of requests, each with a model and a prompt.
    async fn batch(&self, endpoint: BatchEndpoint, requests: &[(&str, &str)]) -> BatchId {
        let line = |(i, (model, prompt)): (usize, &(&str, &str))| {
            let field = if endpoint == BatchEndpoint::Responses { "input" } else { "prompt" };
            json!({"custom_id": format!("r{i}"), "method": "POST", "url": endpoint.path(),
                "body": {"model": model, field: prompt}})
            .to_string()
        };
        let text: String = requests.iter().enumerate().map(|request| line(request) + "\n").collect();
        let id = self.batch_without_content(endpoint, &text).await;
        self.objects().put(&blob_key(digest(&text)), text).await.unwrap();
        id
    }

    async fn batch_without_content(&self, endpoint: BatchEndpoint, text: &str) -> BatchId {
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        let project = self.house.seed.project_id;
        let input = NewFile {
            filename: "batch.jsonl".into(),
            purpose: "batch".into(),
            bytes: Bytes(text.len() as u64),
            sha256: digest(text),
            dataset: None,
            expires_after_seconds: None,
        };
        let new = NewBatch {
            input_file_id: file::insert(&mut conn, project, input).await.unwrap().file_id,
            endpoint,
            completion_window: "24h".into(),
            metadata: None,
            output_expires_seconds: None,
        };
        batch::insert(&mut conn, project, &new).await.unwrap().batch_id
    }

    fn objects(&self) -> &Objects {
        &self.batches.inference.objects
    }

    async fn work(&self, claims: Claims) -> Result<bool, BatchError> {
        one(self.batches.clone(), claims, CancellationToken::new()).await
    }

    async fn get(&self, id: BatchId) -> Batch {
        batch::get(&mut self.house.app.pool.acquire().await.unwrap(), self.house.seed.project_id, id).await.unwrap()
    }

    /// Returns the lines of the output file, or of the error file.
    async fn lines(&self, batch: &Batch, of_errors: bool) -> Vec<Value> {
        let id = if of_errors { batch.error_file_id } else { batch.output_file_id };
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        let sha256 = file::of_job(&mut conn, self.house.seed.project_id, id.unwrap()).await.unwrap().sha256;
        let content = self.objects().get_whole(&blob_key(sha256)).await.unwrap();
        String::from_utf8(content.to_vec()).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn prompts(&self) -> Vec<String> {
        self.received.lock().unwrap().iter().map(|(prompt, _)| prompt.clone()).collect()
    }
}

fn digest(text: &str) -> Sha256 {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    Sha256::from_digest(digest.as_ref().try_into().unwrap())
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect()
}

#[sqlx::test(migrations = false)]
async fn requests_are_sent_model_by_model_with_the_priority_of_batches(pool: PgPool) {
    let world = World::new(pool).await;
    world.serve(world.other_base().await).await;
    let requests = [("tiny", "t0"), ("other", "o1"), ("tiny", "t2"), ("none", "n3"), ("other", "o4"), ("tiny", "t5")];
    let id = world.batch(BatchEndpoint::Completions, &requests).await;
    assert!(world.work(Claims::All).await.unwrap());
    let mut prompts = world.prompts();
    prompts[..3].sort_unstable();
    prompts[3..].sort_unstable();
    assert_eq!(prompts, ["t0", "t2", "t5", "o1", "o4"]);
    assert!(world.received.lock().unwrap().iter().all(|(_, priority)| *priority == Priority::Batch));
    let done = world.get(id).await;
    assert_eq!((done.state, done.total, done.completed, done.failed), (BatchState::Completed, 6, 5, 1));
    let lines = world.lines(&done, false).await;
    assert_eq!(ids(&lines), ["r0", "r1", "r2", "r4", "r5"], "in the order of the input");
    assert_eq!(lines[1]["response"]["body"]["choices"][0]["text"], "yes");
    assert_eq!(world.lines(&done, true).await[0]["response"]["status_code"], 404);
    assert!(!world.work(Claims::All).await.unwrap(), "it is not claimed again");
}

#[sqlx::test(migrations = false)]
async fn a_batch_of_responses_has_responses_in_its_output(pool: PgPool) {
    let world = World::new(pool).await;
    let id = world.batch(BatchEndpoint::Responses, &[("tiny", "hi")]).await;
    assert!(world.work(Claims::All).await.unwrap());
    let done = world.get(id).await;
    assert_eq!((done.state, done.completed), (BatchState::Completed, 1));
    let body = &world.lines(&done, false).await[0]["response"]["body"];
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(body["output"][0]["content"][0]["text"], "yes");
    assert_eq!(world.received.lock().unwrap()[0], ("hi".to_owned(), Priority::Batch));
}

#[sqlx::test(migrations = false)]
async fn a_batch_whose_model_gets_no_replica_fails_with_the_reason_and_keeps_its_answers(pool: PgPool) {
    let world = World::new(pool).await;
    world.other_base().await;
    let id = world.batch(BatchEndpoint::Completions, &[("other", "o0"), ("tiny", "t1"), ("other", "o2")]).await;
    let failing = fails_replicas(&world);
    let unavailable = |worked: Result<bool, BatchError>| matches!(worked, Err(BatchError::Unavailable(_)));
    assert!(unavailable(world.work(Claims::All).await));
    assert_eq!(world.prompts(), ["t1"], "a model without a replica does not hold up the others");
    let batch = world.get(id).await;
    assert_eq!((batch.state, batch.completed, batch.failed), (BatchState::InProgress, 1, 0));
    assert!(!world.work(Claims::All).await.unwrap(), "there is a pause");

    let pool = &world.house.app.pool;
    rows::execute(pool, "update batch set next_try_at = now(), failures = 19").await.unwrap();
    assert!(unavailable(world.work(Claims::All).await));
    let ended = world.get(id).await;
    assert_eq!((ended.state, ended.total, ended.completed, ended.failed), (BatchState::Failed, 3, 1, 0));
    assert_eq!(ended.defects[0].code, "model_unavailable");
    assert!(ended.defects[0].message.starts_with("The batch failed 20 times in a row. The model "), "{ended:?}");
    assert_eq!(ids(&world.lines(&ended, false).await), ["r1"]);
    assert!(!world.work(Claims::All).await.unwrap());
    failing.abort();
}

/// Ends each replica that is requested, as if no machine could hold it.
fn fails_replicas(world: &World) -> tokio::task::JoinHandle<()> {
    let pool = world.house.app.pool.clone();
    let end = "update replica set state = 'ended', ended_at = now(), error = 'no machine' where state = 'wanted'";
    tokio::spawn(async move {
        loop {
            rows::execute(&pool, end).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

#[sqlx::test(migrations = false)]
async fn a_batch_whose_replica_waits_for_a_machine_does_not_fail(pool: PgPool) {
    let world = World::new(pool).await;
    world.other_base().await;
    let id = world.batch(BatchEndpoint::Completions, &[("other", "o0"), ("tiny", "t1")]).await;
    let pool = world.house.app.pool.clone();
    for _ in 0..2 {
        rows::execute(&pool, "update batch set next_try_at = now(), failures = 19").await.unwrap();
        let worked = world.work(Claims::All).await;
        assert!(matches!(&worked, Err(error) if error.is_not_ready()), "{worked:?}");
        let batch = world.get(id).await;
        assert_eq!((batch.state, batch.completed, batch.failed), (BatchState::InProgress, 1, 0));
        assert!(!world.work(Claims::All).await.unwrap(), "there is a pause");
    }
    // Its completion window ends it.
    rows::execute(&pool, "update batch set next_try_at = now(), expires_at = now() - interval '1 s'").await.unwrap();
    assert!(world.work(Claims::All).await.unwrap());
    let ended = world.get(id).await;
    assert_eq!((ended.state, ended.completed, ended.failed), (BatchState::Expired, 1, 1));
}

#[sqlx::test(migrations = false)]
async fn a_batch_whose_workers_are_lost_each_time_fails(pool: PgPool) {
    let world = World::new(pool).await;
    let id = world.batch(BatchEndpoint::Completions, &[("tiny", "t0")]).await;
    let lost = "update batch set worker = gen_random_uuid(), heartbeat_at = now() - interval '1 minute', failures = 19";
    rows::execute(&world.house.app.pool, lost).await.unwrap();
    assert!(world.work(Claims::All).await.unwrap());
    let ended = world.get(id).await;
    assert_eq!((ended.state, ended.defects[0].code.as_str()), (BatchState::Failed, "batch_failed"));
    assert_eq!(world.prompts(), [""; 0]);
}

#[sqlx::test(migrations = false)]
async fn a_batch_whose_file_is_gone_fails_at_once(pool: PgPool) {
    let world = World::new(pool).await;
    let id = world.batch_without_content(BatchEndpoint::Completions, "{}").await;
    assert!(matches!(world.work(Claims::All).await, Err(BatchError::InputGone)));
    let ended = world.get(id).await;
    assert_eq!((ended.state, ended.defects[0].code.as_str()), (BatchState::Failed, "file_not_found"));
}

#[sqlx::test(migrations = false)]
async fn a_batch_whose_window_has_passed_expires_with_exact_counts(pool: PgPool) {
    let world = World::new(pool).await;
    let id = world.batch(BatchEndpoint::Completions, &[("tiny", "t0"), ("tiny", "t1")]).await;
    assert!(!world.work(Claims::Ending).await.unwrap());
    rows::execute(&world.house.app.pool, "update batch set expires_at = now() - interval '1 s'").await.unwrap();
    assert!(world.work(Claims::Ending).await.unwrap());
    let ended = world.get(id).await;
    assert_eq!((ended.state, ended.total, ended.completed, ended.failed), (BatchState::Expired, 2, 0, 2));
    let errors = world.lines(&ended, true).await;
    assert_eq!((ids(&errors), &errors[0]["error"]["code"]), (vec!["r0", "r1"], &json!("batch_expired")));
    assert!(ended.output_file_id.is_none() && world.prompts().is_empty());
}

#[sqlx::test(migrations = false)]
async fn a_cancellation_stops_the_requests_in_progress_within_seconds(pool: PgPool) {
    let world = Arc::new(World::new(pool).await);
    let id = world.batch(BatchEndpoint::Completions, &[("tiny", "t0"), ("tiny", NO_ANSWER)]).await;
    let working = tokio::spawn({
        let world = world.clone();
        async move { world.work(Claims::All).await }
    });
    while world.prompts().len() < 2 || world.get(id).await.completed < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    let mut conn = world.house.app.pool.acquire().await.unwrap();
    batch::cancel(&mut conn, world.house.seed.project_id, id).await.unwrap();
    assert!(working.await.unwrap().unwrap());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let ended = world.get(id).await;
    assert_eq!((ended.state, ended.total, ended.completed, ended.failed), (BatchState::Cancelled, 2, 1, 0));
    assert_eq!(ids(&world.lines(&ended, false).await), ["r0"]);
}

#[sqlx::test(migrations = false)]
async fn a_scheduler_that_stops_releases_its_batches_and_the_next_one_resumes_them(pool: PgPool) {
    let world = Arc::new(World::new(pool).await);
    let id = world.batch(BatchEndpoint::Completions, &[("tiny", "t0"), ("tiny", NO_ANSWER)]).await;
    let stop = CancellationToken::new();
    let working = tokio::spawn(one(world.batches.clone(), Claims::All, stop.clone()));
    while world.prompts().len() < 2 || world.get(id).await.completed < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    assert!(!working.await.unwrap().unwrap());
    // No wait for a lease, no attempt without progress, and no second request for what was answered.
    let next = tokio::spawn(one(world.batches.clone(), Claims::All, CancellationToken::new()));
    while world.prompts().len() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    next.abort();
    assert_eq!(world.prompts()[2], NO_ANSWER);
}
