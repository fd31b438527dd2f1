//! Rows for tests, written through this crate's own functions where possible, and simulated time.

use std::collections::BTreeMap;

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    dataset::{RowFormat, file_facts::FileFacts},
    digest::Sha256,
    id::{BaseModelId, FileId, JobId, ProjectId, ReplicaId, RunId},
    job::{JobEvent, Priority},
    offer::ComputeLimits,
    placement::Placement,
    run::{Blob, Gate, Plan, Report, RunEvent, StepMetrics, metric::MetricName},
    spec::{Requested, TrainSpec},
};
use sqlx::{PgConnection, PgPool};

use crate::{
    adapters::base_model::{self, NewBaseModel},
    config::ObjectStoreConfig,
    db,
    error::StoreError,
    files::{
        file::{self, Dataset, NewFile, Source},
        objects::Objects,
    },
    ids,
    jobs::job::{self, NewJob, Step, TokenFacts},
    queue::Task,
    runs::{
        node::NewNode,
        run::{self, NewRun, Run},
    },
    tenancy::tenant,
};

/// Rows in bulk, for measurements.
pub mod bulk;

/// Replicas without processes.
pub mod replicas;

/// Statements of single tests.
pub mod rows;

/// The token of every run that [`claimed_run`] creates.
pub const RUN_TOKEN: &str = "token";

/// A project with a base model and a file.
#[derive(Debug, Clone, Copy)]
pub struct Seed {
    /// The project's ID.
    pub project_id: ProjectId,
    /// The ID of a tiny Llama.
    pub base_model_id: BaseModelId,
    /// The ID of a file with 100 rows.
    pub file_id: FileId,
}

/// The `config.json` of the tiny Llama.
pub const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 512, "tie_word_embeddings": true}"#;

/// Creates the schema, including the queue's, and a project with everything that a job needs.
///
/// # Errors
/// Any [`StoreError`].
pub async fn seed(pool: &PgPool) -> Result<Seed, StoreError> {
    db::migrate(pool).await?;
    let mut conn = pool.acquire().await?;
    let project_id = tenant::ensure(&mut conn, "default", "default").await?.project_id;
    let architecture = Architecture::from_config_json(CONFIG.as_bytes())
        .map_err(|e| StoreError::Corrupt { column: "base_model.architecture", cause: Box::new(e) })?;
    let config = blob("config.json", 'c');
    let files = [config];
    let tiny = NewBaseModel { name: "tiny", architecture: &architecture, files: &files, origin: None, license: None };
    let base = base_model::insert(&mut conn, None, &tiny).await?;
    let file_id = file::insert(&mut conn, project_id, dataset()).await?.file_id;
    Ok(Seed { project_id, base_model_id: base.base_model_id, file_id })
}

/// Returns a file with 100 rows.
fn dataset() -> NewFile {
    NewFile {
        filename: "train.jsonl".into(),
        purpose: "fine-tune".into(),
        bytes: Bytes(1000),
        sha256: sha256('f'),
        dataset: Some(Dataset {
            format: RowFormat::Chat,
            rows: 100,
            source: Source { container: "jsonl".into(), compression: None, shape: "chat".into() },
            canonical: None,
        }),
        expires_after_seconds: None,
    }
}

/// Returns the digest that is this hex digit, repeated 64 times.
#[must_use]
pub fn sha256(digit: char) -> Sha256 {
    let value = digit.to_digit(16).and_then(|value| u8::try_from(value).ok());
    Sha256::from_digest([value.unwrap_or_default() * 0x11; 32])
}

/// Returns a blob whose digest is one digit, repeated 64 times.
#[must_use]
pub fn blob(name: &str, digit: char) -> Blob {
    Blob { name: name.into(), sha256: sha256(digit), bytes: Bytes(10) }
}

/// Returns an object store that never answers; it can only sign.
#[must_use]
pub fn unreachable_objects() -> Objects {
    objects_at("http://127.0.0.1:9")
}

/// Returns the bucket `attune` of a test's S3 server, whose access key is `key` and `secret`.
#[must_use]
pub fn objects_at(endpoint: &str) -> Objects {
    Objects::new(&ObjectStoreConfig {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".into(),
        bucket: "attune".into(),
        access_key_id: "key".into(),
        secret_access_key: "secret".to_owned().into(),
        path_style: true,
    })
}

/// Creates a new job.
///
/// # Errors
/// Any [`StoreError`].
pub async fn new_job(tx: &mut PgConnection, seed: Seed) -> Result<JobId, StoreError> {
    let spec = TrainSpec::check(&Requested::default(), 100, 512)
        .map_err(|e| StoreError::Corrupt { column: "job.spec", cause: Box::new(e) })?;
    let new = NewJob {
        project_id: seed.project_id,
        base_model_id: seed.base_model_id,
        training_file_id: seed.file_id,
        validation_file_id: None,
        continue_from: None,
        suffix: Some("mail".into()),
        metadata: serde_json::json!({}),
        spec,
        api_key_id: None,
        micro_usd_per_million_tokens: 0,
        max_micro_usd: None,
        priority: Priority::default(),
        preemptible: false,
        limits: ComputeLimits::default(),
        traceparent: None,
    };
    Ok(job::insert(tx, &new).await?.job_id)
}

/// Creates a job whose files were validated.
///
/// # Errors
/// Any [`StoreError`].
pub async fn queued_job(tx: &mut PgConnection, seed: Seed) -> Result<JobId, StoreError> {
    let id = new_job(tx, seed).await?;
    let training = FileFacts { rows: 100, tokens: 5000, trained_tokens: 2000, longest_row: 80 };
    job::save_facts(tx, id, &TokenFacts { training, validation: None }, 75).await?;
    job::step(tx, id, &Step::new(JobEvent::DataAccepted, "Files validated")).await?;
    Ok(id)
}

/// Sets the priority of a job, and whether it may be preempted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn rank(tx: &mut PgConnection, id: JobId, priority: Priority, preemptible: bool) -> Result<(), StoreError> {
    sqlx::query("update job set priority = $2, preemptible = $3 where job_id = $1")
        .bind(id.uuid())
        .bind(priority.name())
        .bind(preemptible)
        .execute(tx)
        .await?;
    Ok(())
}

/// Creates another project of the same organization, with the same base model and a file of its own.
///
/// # Errors
/// Any [`StoreError`].
pub async fn neighbor(tx: &mut PgConnection, seed: Seed, name: &str) -> Result<Seed, StoreError> {
    let project_id = tenant::ensure(tx, "default", name).await?.project_id;
    let file_id = file::insert(tx, project_id, dataset()).await?.file_id;
    Ok(Seed { project_id, file_id, ..seed })
}

/// Claims a queued job, as dispatch does, for a trainer that has uploaded every [`blob`] that tests name.
///
/// # Errors
/// Any [`StoreError`].
pub async fn claimed_run(tx: &mut PgConnection, job_id: JobId) -> Result<Run, StoreError> {
    let run = claim(tx, job_id).await?;
    put_blobs(tx, run.run_id).await?;
    Ok(run)
}

/// Claims a queued job, as dispatch does.
///
/// # Errors
/// Any [`StoreError`].
pub async fn claim(tx: &mut PgConnection, job_id: JobId) -> Result<Run, StoreError> {
    let resume_id = crate::jobs::checkpoint::newest(tx, job_id).await?.map(|checkpoint| checkpoint.checkpoint_id);
    let plan = Plan {
        micro_batch_size: 4,
        micro_batch_tokens: 1024,
        checkpointing: false,
        threads: 2,
        predicted_peak: Bytes::mib(400),
        placement: Placement::default(),
    };
    let node = NewNode { memory: plan.predicted_peak, ..replicas::node(0) };
    let (token_hash, message) = (ids::hash(RUN_TOKEN), "Training".into());
    let new = NewRun { job_id, node, plan, resume_id, token_hash, heartbeat_seconds: 10, message };
    run::create(tx, &new).await
}

/// Records that a run's trainer has uploaded every [`blob`] that tests name.
///
/// # Errors
/// Any [`StoreError`].
pub async fn put_blobs(tx: &mut PgConnection, id: RunId) -> Result<(), StoreError> {
    sqlx::query(
        "insert into run_blob (run_id, sha256, bytes)
         select $1, repeat(digit, 64), 10 from regexp_split_to_table('0123456789abcdef', '') digit
         on conflict do nothing",
    )
    .bind(id.uuid())
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns a report of `events`, the first of which has this number.
#[must_use]
pub fn report(run: &Run, first_sequence: u64, events: &[RunEvent]) -> Report {
    Report { run_lease: run.run_lease, first_sequence, events: events.to_vec() }
}

/// Returns the event of a trainer's start.
#[must_use]
pub const fn started() -> RunEvent {
    RunEvent::Started { total_steps: 75, tokens_per_epoch: 5000, trainable_weights: 1000, processor: None }
}

/// Returns the event of a completed optimizer step.
#[must_use]
pub fn stepped(step: u64) -> RunEvent {
    RunEvent::Step(StepMetrics {
        step,
        total_steps: 75,
        train_loss: 0.81,
        tokens: 200,
        trained_tokens: 80,
        step_ms: 100,
        peak_memory: Bytes::mib(380),
        metrics: BTreeMap::from([
            (MetricName::Epoch, 0.1),
            (MetricName::TrainMeanTokenAccuracy, 0.7),
            (MetricName::LearningRate, 2e-4),
            (MetricName::GradNorm, 1.0),
        ]),
    })
}

/// Returns the event of a checkpoint with one file.
#[must_use]
pub fn checkpointed(step: u64, digit: char) -> RunEvent {
    RunEvent::Checkpointed { step, files: vec![blob("state", digit)], train_loss: 0.8, valid_loss: None }
}

/// Returns the event of a published adapter.
#[must_use]
pub fn published() -> RunEvent {
    RunEvent::Published {
        files: vec![blob("adapter_model.safetensors", 'a')],
        chat_template_sha256: None,
        trained_tokens: 6000,
        best_step: None,
        peak_memory: Bytes::mib(390),
        gate: Gate::default(),
    }
}

/// Returns the stored response bodies for repeated requests.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn kept_answers(db: &mut PgConnection) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("select answer from idempotency_key where answer is not null").fetch_all(db).await?)
}

/// Returns the number of pending messages of a kind.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn messages<T: Task>(conn: &mut PgConnection) -> Result<i64, StoreError> {
    let count = "select count(*) from apalis.jobs where job_type = $1 and status = 'Pending'";
    Ok(sqlx::query_scalar(count).bind(T::QUEUE).fetch_one(conn).await?)
}

/// Deletes all messages.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lose_messages(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("delete from apalis.jobs").execute(conn).await?;
    Ok(())
}

/// Moves the times of jobs, runs and replicas a minute into the past.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn pass_a_minute(conn: &mut PgConnection) -> Result<(), StoreError> {
    for statement in [
        "update job set pushed_at = pushed_at - interval '61 seconds', retry_at = retry_at - interval '61 seconds'",
        "update run set heartbeat_at = heartbeat_at - interval '61 seconds'",
        "update replica set pushed_at = pushed_at - interval '61 seconds',
             heartbeat_at = heartbeat_at - interval '61 seconds', last_used_at = last_used_at - interval '61 seconds'",
    ] {
        sqlx::query(statement).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Moves the start of all drains a minute into the past.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn age_draining(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("update replica set draining_since = draining_since - interval '61 seconds'").execute(conn).await?;
    Ok(())
}

/// Moves the start of all nodes an hour into the past.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn age_nodes(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("update node set created_at = created_at - interval '1 hour'").execute(conn).await?;
    Ok(())
}

/// Moves the deadlines of loose blobs three hours into the past.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn age_loose_blobs(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("update loose_blob set delete_after = delete_after - interval '3 hours'").execute(conn).await?;
    Ok(())
}

/// Returns the state and outcome of a run.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn run_end(conn: &mut PgConnection, id: RunId) -> Result<(String, Option<String>), StoreError> {
    Ok(sqlx::query_as("select state, outcome from run where run_id = $1").bind(id.uuid()).fetch_one(conn).await?)
}

/// Returns the error of a replica.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn replica_error(conn: &mut PgConnection, id: ReplicaId) -> Result<Option<String>, StoreError> {
    let error = "select error from replica where replica_id = $1";
    Ok(sqlx::query_scalar(error).bind(id.uuid()).fetch_one(conn).await?)
}

/// Returns the digests of all files that are not deleted.
///
/// # Errors
/// Any [`StoreError`].
pub async fn file_digests(db: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar("select sha256 from file where deleted_at is null").fetch_all(db).await?)
}

/// Returns the number of rows in `loose_blob`.
///
/// # Errors
/// Any [`StoreError`].
pub async fn loose_blobs(db: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("select count(*) from loose_blob").fetch_one(db).await?)
}

/// Leaves an upload as an API process does that dies while it joins the parts: claimed, and with the key of `request`
/// taken.
///
/// # Errors
/// Any [`StoreError`].
pub async fn die_in_a_join(conn: &mut PgConnection, project: ProjectId, request: &str) -> Result<(), StoreError> {
    sqlx::query("update upload set claimed_until = now() + interval '59 seconds', claimed_by = gen_random_uuid()")
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "insert into idempotency_key (project_id, key, claim, request, held_until)
         values ($1, 'once', gen_random_uuid(), $2, now() - interval '1 second')",
    )
    .bind(project.uuid())
    .bind(request)
    .execute(conn)
    .await?;
    Ok(())
}

/// Moves the deadlines of upload claims a minute into the past.
///
/// # Errors
/// Any [`StoreError`].
pub async fn age_claims(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("update upload set claimed_until = claimed_until - interval '1 minute'").execute(conn).await?;
    Ok(())
}
