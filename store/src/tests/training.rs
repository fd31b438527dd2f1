//! Reports during training: learning rates found, repeated steps, continued adapters.

use attune_domain::{
    id::{AdapterVersionId, JobId, ProjectId},
    run::{MessageLevel, RunEvent},
    spec::BASE_LEARNING_RATE,
};
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use crate::{
    adapters::adapter::{self, Needed},
    error::StoreError,
    ids,
    jobs::{checkpoint, job, job_event},
    runs::{report, run_spec},
    testing::{
        Seed, age_loose_blobs, blob, checkpointed, claimed_run, new_job, queued_job, report as says, seed, sha256,
        started, stepped, unreachable_objects,
    },
};

/// A span of a trace.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Returns the adapter of a succeeded job.
async fn trained(conn: &mut PgConnection, seed: Seed) -> AdapterVersionId {
    let id = queued_job(conn, seed).await.unwrap();
    let run = claimed_run(conn, id).await.unwrap();
    let files = vec![
        blob("README.md", 'e'),
        blob("adapter_config.json", 'b'),
        blob("adapter_model.safetensors", 'a'),
        blob("chat_template.jinja", 'd'),
    ];
    let peak_memory = attune_domain::bytes::Bytes::mib(390);
    let gate = attune_domain::run::Gate::default();
    let (chat_template_sha256, trained_tokens, best_step) = (None, 6000, None);
    let published = RunEvent::Published { files, chat_template_sha256, trained_tokens, best_step, peak_memory, gate };
    report::take(conn, run.run_id, &says(&run, 0, &[started(), published])).await.unwrap();
    adapter::list(conn, seed.project_id, None, None, 1).await.unwrap()[0].adapter_version_id
}

/// Creates a queued job that continues an adapter.
async fn continuing(conn: &mut PgConnection, seed: Seed, from: AdapterVersionId) -> JobId {
    let other = new_job(conn, seed).await.unwrap();
    let made = job::load(conn, other).await.unwrap();
    let new = job::NewJob {
        project_id: seed.project_id,
        base_model_id: seed.base_model_id,
        training_file_id: seed.file_id,
        validation_file_id: None,
        continue_from: Some(from),
        suffix: None,
        metadata: json!({}),
        spec: made.spec,
        api_key_id: None,
        micro_usd_per_million_tokens: 0,
        max_micro_usd: None,
        priority: made.priority,
        preemptible: made.preemptible,
        limits: made.limits,
        traceparent: Some(PARENT.parse().unwrap()),
    };
    job::insert(conn, &new).await.unwrap().job_id
}

#[sqlx::test(migrations = false)]
async fn a_learning_rate_that_was_found_is_the_jobs_and_its_curve_an_event(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let before = job::load(&mut conn, id).await.unwrap().spec;
    let run = claimed_run(&mut conn, id).await.unwrap();
    let curve = vec![(1e-6, 2.5), (1e-3, 1.25)];
    let found = RunEvent::LearningRateFound { learning_rate: 1e-4, curve, reason: "the steepest fall".into() };
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), found])).await.unwrap();

    let task = run_spec::get(&mut conn, &unreachable_objects(), &run).await.unwrap();
    let spec = task.train;
    let mut wanted = before;
    wanted.trainer.learning_rate = 1e-4;
    wanted.hyperparameters.learning_rate_multiplier = 1e-4 / BASE_LEARNING_RATE;
    assert_eq!(spec, wanted, "only the learning rate has changed");
    let event = job_event::list(&mut conn, seed.project_id, id, None, 1).await.unwrap().remove(0);
    assert_eq!((event.kind.as_str(), event.message.as_str()), ("message", "the steepest fall"));
    assert_eq!(event.data, Some(json!({"learning_rate": 1e-4, "curve": [[1e-6, 2.5], [1e-3, 1.25]]})));
}

#[sqlx::test(migrations = false)]
async fn a_run_continues_the_trace_of_the_request_that_created_its_job(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let task = run_spec::get(&mut conn, &unreachable_objects(), &run).await.unwrap();
    assert_eq!(task.run.traceparent, None);
    for (name, is_one) in [(PARENT, true), ("", false), ("00-1-2-01", false), (&PARENT.to_uppercase(), false)] {
        let set = sqlx::query("update job set traceparent = $2 where job_id = $1").bind(id.uuid()).bind(name);
        assert_eq!(set.execute(&mut *conn).await.is_ok(), is_one, "{name}");
    }
    let task = run_spec::get(&mut conn, &unreachable_objects(), &run).await.unwrap();
    assert_eq!(task.run.traceparent.unwrap().to_string(), PARENT);
}

#[sqlx::test(migrations = false)]
async fn a_message_keeps_its_data_and_its_level(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let with = |level, data| RunEvent::Message { level, text: "so".into(), data };
    let events = [with(MessageLevel::Warn, json!({"step": 7})), with(MessageLevel::Info, json!(null))];
    report::take(&mut conn, run.run_id, &says(&run, 0, &events)).await.unwrap();
    let told = job_event::list(&mut conn, seed.project_id, id, None, 2).await.unwrap();
    assert_eq!((told[1].level.as_str(), told[1].data.clone()), ("warn", Some(json!({"step": 7}))));
    assert_eq!((told[0].level.as_str(), told[0].data.clone()), ("info", None));
}

#[sqlx::test(migrations = false)]
async fn steps_and_checkpoints_that_come_again_after_a_roll_back_take_the_place_of_the_first(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let first = [started(), stepped(20), checkpointed(20, '1'), stepped(21), stepped(22), checkpointed(22, '2')];
    report::take(&mut conn, run.run_id, &says(&run, 0, &first)).await.unwrap();
    let back = RunEvent::Message { level: MessageLevel::Warn, text: "back to step 20".into(), data: json!({}) };
    // The state of step 20 is bit-identical; that of step 22 differs.
    let again = [back, stepped(20), checkpointed(20, '1'), stepped(21)];
    report::take(&mut conn, run.run_id, &says(&run, 6, &again)).await.unwrap();
    assert_eq!(job::load(&mut conn, id).await.unwrap().steps_done, 21);
    report::take(&mut conn, run.run_id, &says(&run, 10, &[stepped(22), checkpointed(22, '3')])).await.unwrap();

    let kept = checkpoint::list(&mut conn, seed.project_id, id).await.unwrap();
    let measured = checkpoint::accuracies(&mut conn, id, &kept).await.unwrap();
    assert!(kept.iter().all(|checkpoint| measured[&checkpoint.step].train == Some(0.7)), "{measured:?}");
    let kept: Vec<_> = kept.into_iter().map(|kept| (kept.step, kept.files)).collect();
    assert_eq!(kept, [(22, vec![blob("state", '3')]), (20, vec![blob("state", '1')])]);
}

#[sqlx::test(migrations = false)]
async fn a_run_gets_the_two_files_of_the_adapter_that_its_job_continues_from(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let from = trained(&mut conn, seed).await;
    let id = continuing(&mut conn, seed, from).await;
    assert_eq!(job::get(&mut conn, seed.project_id, id).await.unwrap().continue_from, Some(from));
    job::step(&mut conn, id, &job::Step::new(attune_domain::job::JobEvent::DataAccepted, "")).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();

    let task = run_spec::get(&mut conn, &unreachable_objects(), &run).await.unwrap();
    let told = task.continue_from.unwrap();
    assert_eq!(told.adapter_version_id, from);
    let files: Vec<_> = told.files.iter().map(|file| (file.name.as_str(), file.sha256)).collect();
    assert_eq!(files, [("adapter_config.json", sha256('b')), ("adapter_model.safetensors", sha256('a'))]);
    assert!(told.files.iter().all(|file| file.url.contains("X-Amz-Signature")));

    let other = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, other).await.unwrap();
    let task = run_spec::get(&mut conn, &unreachable_objects(), &run).await.unwrap();
    assert_eq!(task.continue_from, None);
}

#[sqlx::test(migrations = false)]
async fn an_adapter_that_a_job_continues_from_stays_until_the_job_has_ended(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let from = trained(&mut conn, seed).await;
    let name = adapter::get(&mut conn, seed.project_id, from).await.unwrap().model_name;
    let id = continuing(&mut conn, seed, from).await;
    assert_eq!(adapter::delete(&mut conn, seed.project_id, &name).await.unwrap(), Some(Needed::Job(id)));
    assert!(adapter::get(&mut conn, seed.project_id, from).await.is_ok());
    age_loose_blobs(&mut conn).await.unwrap();

    job::cancel(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(adapter::delete(&mut conn, seed.project_id, &name).await.unwrap(), None);
    assert!(adapter::lock(&mut conn, seed.project_id, &name).await.is_err());
    assert_eq!(job::load(&mut conn, id).await.unwrap().continue_from, Some(from), "the job's view still shows it");
}

#[sqlx::test(migrations = false)]
async fn an_adapter_is_found_by_id_and_by_name_and_not_by_another_project(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let from = trained(&mut conn, seed).await;
    let stranger: ProjectId = ids::id();
    let name = adapter::get(&mut conn, seed.project_id, from).await.unwrap().model_name;
    for named in [from.to_string(), name] {
        let found = adapter::lock(&mut conn, seed.project_id, &named).await.unwrap();
        assert_eq!(found.adapter_version_id, from);
        assert_eq!(found.spec.rank, 16);
        let refused = adapter::lock(&mut conn, stranger, &named).await;
        assert!(matches!(refused, Err(StoreError::NotFound("adapter"))), "{refused:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn an_adapter_is_not_deleted_while_a_job_that_needs_it_is_being_made(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let from = trained(&mut conn, seed).await;
    let name = adapter::get(&mut conn, seed.project_id, from).await.unwrap().model_name;
    let making = async {
        let mut tx = pool.begin().await.unwrap();
        adapter::lock(&mut tx, seed.project_id, &name).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let id = continuing(&mut tx, seed, from).await;
        tx.commit().await.unwrap();
        id
    };
    let deleting = async {
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        let mut tx = pool.begin().await.unwrap();
        let needed = adapter::delete(&mut tx, seed.project_id, &name).await.unwrap();
        tx.commit().await.unwrap();
        needed
    };
    let (made, needed) = tokio::join!(making, deleting);
    assert_eq!(needed, Some(Needed::Job(made)));
}

#[sqlx::test(migrations = false)]
async fn content_of_a_checkpoint_that_came_again_is_not_swept(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let events = [started(), checkpointed(20, '1'), checkpointed(20, '1')];
    report::take(&mut conn, run.run_id, &says(&run, 0, &events)).await.unwrap();
    age_loose_blobs(&mut conn).await.unwrap();
    // The store behind these objects does not answer: an entry whose content could not be deleted would be kept.
    assert_eq!(crate::files::blob::sweep(&mut conn, &unreachable_objects()).await.unwrap().gone, 0);
    let left: i64 = sqlx::query_scalar("select count(*) from loose_blob").fetch_one(&mut *conn).await.unwrap();
    assert_eq!(left, 0);
}
