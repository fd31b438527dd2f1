//! Runs that ran out of memory: the next run of their job, the end of the ladder, and refunds.

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    job::JobState,
    offer::Offer,
    placement::Placement,
    run::{Plan, RunEvent},
};
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use crate::tests::money::{an_hour_ago, everything, priced_job};
use crate::{
    ids,
    jobs::{
        candidate, checkpoint, job,
        job_event::{self, JobEventRow},
        job_pause,
        loss::{self, Blame, Loss},
        memory_ladder::may_run_out,
    },
    queue::DispatchJob,
    runs::{
        node::NewNode,
        offer, report,
        run::{self, NewRun, Run},
    },
    tenancy::usage,
    testing::{
        self, Seed, checkpointed, claimed_run, published, queued_job, report as says, run_end, seed, started, stepped,
    },
};

fn out_of_memory() -> RunEvent {
    RunEvent::OutOfMemory { message: "out of memory".into(), peak_memory: Bytes::mib(500) }
}

/// Publishes one offer for each of these amounts of memory, in MiB, named by it.
async fn offer_all(conn: &mut PgConnection, memories: &[u64]) {
    let offer = |memory: &u64| Offer::cpu("local", memory.to_string(), Bytes::mib(*memory), 2);
    let offers: Vec<_> = memories.iter().map(offer).collect();
    offer::publish(conn, "local", &offers).await.unwrap();
}

/// Returns the plan that dispatch keeps.
async fn kept_plan(conn: &mut PgConnection, job_id: JobId) -> Option<Plan> {
    let mut found = candidate::load(conn, &[job_id]).await.unwrap();
    found.remove(&job_id).unwrap().unwrap().kept
}

/// Claims the job for a run on the offer of this name, with the plan that dispatch keeps.
async fn claimed_on(conn: &mut PgConnection, job_id: JobId, offer: &str) -> Run {
    let new = Plan {
        micro_batch_size: 4,
        micro_batch_tokens: 320,
        checkpointing: false,
        threads: 2,
        predicted_peak: Bytes::mib(400),
        placement: Placement::default(),
    };
    let plan = kept_plan(conn, job_id).await.unwrap_or(new);
    let resume_id = checkpoint::newest(conn, job_id).await.unwrap().map(|checkpoint| checkpoint.checkpoint_id);
    let node =
        NewNode { provider: "local".into(), offer: offer.into(), memory: plan.predicted_peak, micro_usd_per_hour: 0 };
    let (token_hash, message) = (ids::hash(testing::RUN_TOKEN), "Training".into());
    let new = NewRun { job_id, node, plan, resume_id, token_hash, heartbeat_seconds: 10, message };
    run::create(conn, &new).await.unwrap()
}

/// Returns the events with the ladder's code, oldest first.
async fn rungs(conn: &mut PgConnection, seed: Seed, id: JobId) -> Vec<JobEventRow> {
    let events = job_event::following(conn, seed.project_id, id, 0, 100).await.unwrap();
    events.into_iter().filter(|event| event.data.as_ref().is_some_and(|data| data["code"] == "out_of_memory")).collect()
}

#[sqlx::test(migrations = false)]
async fn a_run_out_of_memory_is_followed_by_one_with_less_and_is_refunded(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = priced_job(&mut conn, seed, 1_000_000).await;
    let first = claimed_run(&mut conn, id).await.unwrap();
    an_hour_ago(&mut conn, &first).await;
    testing::lose_messages(&mut conn).await.unwrap();
    // 80 tokens with a loss in each step, for a millionth of a dollar each.
    let told = [started(), stepped(1), checkpointed(1, '1'), stepped(2), stepped(3), out_of_memory()];
    report::take(&mut conn, first.run_id, &says(&first, 0, &told)).await.unwrap();

    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.run_id, job.barren_attempts, job.error), (JobState::Queued, None, 0, None));
    assert_eq!(run_end(&mut conn, first.run_id).await.unwrap().1.as_deref(), Some("out_of_memory"));
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 1);
    let kept = kept_plan(&mut conn, id).await.unwrap();
    assert_eq!(kept, Plan { checkpointing: true, ..first.plan });
    let rungs = rungs(&mut conn, seed, id).await;
    assert_eq!((rungs.len(), rungs[0].level.as_str()), (1, "warn"), "{rungs:?}");
    let data = rungs[0].data.as_ref().unwrap();
    assert_eq!(data["rung"], "gradient_checkpointing");
    assert_eq!((&data["predicted_bytes"], &data["peak_bytes"]), (&json!(400 << 20), &json!(500 << 20)));
    assert_eq!(data["after"], json!({"micro_batch_size": 4, "gradient_checkpointing": true}));
    assert!(rungs[0].message.starts_with("out of memory. The next run recomputes"), "{}", rungs[0].message);

    // The first step is kept by its checkpoint, and charged. Everything else is refunded.
    assert_eq!((job.charged_tokens, job.node_ms, job.micro_usd), (80, 0, 80));
    let sums = usage::sums(&mut conn, seed.project_id, &everything()).await.unwrap();
    let lines: Vec<_> = sums.iter().map(|sums| (sums.kind.as_deref(), sums.runs, sums.trained_tokens)).collect();
    assert_eq!(lines, [(Some("refund"), 0, -160), (Some("training"), 1, 240)]);
    assert_eq!(sums[0].node_ms, -sums[1].node_ms);
    let training = usage::Question { kind: Some("training"), by_kind: false, ..everything() };
    let net = &usage::sums(&mut conn, seed.project_id, &training).await.unwrap()[0];
    assert_eq!((net.runs, net.trained_tokens, net.node_ms, net.micro_usd), (1, 80, 0, 80));

    // Steps that are trained on again count again.
    let second = claimed_run(&mut conn, id).await.unwrap();
    let told = [started(), stepped(2), stepped(3), stepped(4), published()];
    report::take(&mut conn, second.run_id, &says(&second, 0, &told)).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.charged_tokens), (JobState::Succeeded, 4 * 80));
}

#[sqlx::test(migrations = false)]
async fn the_ladder_ends_with_a_reason_that_names_everything_that_was_tried(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    offer_all(&mut conn, &[900, 1800]).await;
    for offer in ["900", "900", "900", "900", "1800"] {
        let run = claimed_on(&mut conn, id, offer).await;
        // As the provider reports a trainer that the kernel killed.
        let loss = Loss::new("attune-trainer ended (signal: 9)", Blame::Memory);
        loss::lost(&mut conn, run.run_id, &loss).await.unwrap();
    }
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.attempts, job.barren_attempts), (JobState::Failed, 5, 0));
    let rungs = rungs(&mut conn, seed, id).await;
    let climbed: Vec<_> = rungs
        .iter()
        .map(|event| event.data.as_ref().unwrap())
        .map(|data| (data["rung"].as_str().unwrap(), data["after"]["micro_batch_size"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        climbed,
        [("gradient_checkpointing", 4), ("micro_batch_size", 2), ("micro_batch_size", 1), ("larger_offer", 1)]
    );
    assert!(rungs[3].message.contains("a machine with more than 900.0 MiB of memory"), "{}", rungs[3].message);
    let above: Option<i64> = sqlx::query_scalar("select memory_above from job where job_id = $1")
        .bind(id.uuid())
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    assert_eq!(above, Some(900 << 20));
    let error = job.error.unwrap();
    assert_eq!((error.code.as_str(), error.param), ("out_of_memory", None));
    for tried in [
        "micro_batch_size 4, gradient_checkpointing false on 900",
        "micro_batch_size 4, gradient_checkpointing true on 900",
        "micro_batch_size 2, gradient_checkpointing true on 900",
        "micro_batch_size 1, gradient_checkpointing true on 900",
        "micro_batch_size 1, gradient_checkpointing true on 1800",
    ] {
        assert!(error.message.contains(tried), "{tried}: {}", error.message);
    }
}

#[sqlx::test(migrations = false)]
async fn a_requested_plan_is_not_changed_and_the_error_names_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    offer_all(&mut conn, &[900]).await;
    let asked = r#"update job set spec = spec || '{"micro_batch_size": 4, "gradient_checkpointing": false}'
                   where job_id = $1"#;
    sqlx::query(asked).bind(id.uuid()).execute(&mut *conn).await.unwrap();
    let run = claimed_on(&mut conn, id, "900").await;
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), out_of_memory()])).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    let error = job.error.unwrap();
    assert_eq!((job.state, error.code.as_str()), (JobState::Failed, "out_of_memory"));
    assert_eq!(error.param.as_deref(), Some("trainer.gradient_checkpointing"));
    let named = "requested: trainer.gradient_checkpointing false and trainer.micro_batch_size 4";
    assert!(error.message.ends_with(named), "{}", error.message);
    assert_eq!(rungs(&mut conn, seed, id).await, []);
}

#[sqlx::test(migrations = false)]
async fn a_job_that_was_to_pause_pauses_with_its_rung_and_a_cancelled_one_ends(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (paused, cancelled) = (queued_job(&mut conn, seed).await.unwrap(), queued_job(&mut conn, seed).await.unwrap());
    for id in [paused, cancelled] {
        let run = claimed_on(&mut conn, id, "900").await;
        report::take(&mut conn, run.run_id, &says(&run, 0, &[started()])).await.unwrap();
        if id == paused {
            job_pause::pause(&mut conn, seed.project_id, id).await.unwrap();
        } else {
            job::cancel(&mut conn, seed.project_id, id).await.unwrap();
        }
        report::take(&mut conn, run.run_id, &says(&run, 1, &[out_of_memory()])).await.unwrap();
    }
    let states = [job::load(&mut conn, paused).await.unwrap(), job::load(&mut conn, cancelled).await.unwrap()];
    assert_eq!(states.map(|job| (job.state, job.error)), [(JobState::Paused, None), (JobState::Cancelled, None)]);
    assert!(kept_plan(&mut conn, paused).await.unwrap().checkpointing);
    assert_eq!((rungs(&mut conn, seed, paused).await.len(), rungs(&mut conn, seed, cancelled).await.len()), (1, 0));
}

#[sqlx::test(migrations = false)]
async fn steps_that_early_stopping_dropped_are_refunded(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = priced_job(&mut conn, seed, 1_000_000).await;
    let run = claimed_run(&mut conn, id).await.unwrap();
    let mut best = published();
    if let RunEvent::Published { best_step, .. } = &mut best {
        *best_step = Some(2);
    }
    let told = [started(), stepped(1), stepped(2), stepped(3), stepped(4), best];
    report::take(&mut conn, run.run_id, &says(&run, 0, &told)).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.charged_tokens, job.micro_usd), (JobState::Succeeded, 160, 160));
    let sums = usage::sums(&mut conn, seed.project_id, &everything()).await.unwrap();
    let lines: Vec<_> = sums.iter().map(|sums| (sums.kind.as_deref(), sums.trained_tokens, sums.micro_usd)).collect();
    assert_eq!(lines, [(Some("refund"), -160, -160), (Some("training"), 320, 320)]);
    assert_eq!(sums[0].node_ms, 0, "the node's time is charged");
}

#[sqlx::test(migrations = false)]
async fn the_largest_batch_is_tried_first_where_memory_may_run_out(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    // 400 MiB are predicted: 80% of 500 MiB.
    offer_all(&mut conn, &[499, 500]).await;
    for (offer, expected) in [("500", false), ("499", true), ("gone", false)] {
        let id = queued_job(&mut conn, seed).await.unwrap();
        let run = claimed_on(&mut conn, id, offer).await;
        assert_eq!(may_run_out(&mut conn, &run).await.unwrap(), expected, "{offer}");
        loss::lost(&mut conn, run.run_id, &Loss::new("ended", Blame::Nobody)).await.unwrap();
        let run = claimed_on(&mut conn, id, offer).await;
        assert!(!may_run_out(&mut conn, &run).await.unwrap(), "{offer}: the plan has run before");
        loss::lost(&mut conn, run.run_id, &Loss::new("killed", Blame::Memory)).await.unwrap();
        let run = claimed_on(&mut conn, id, offer).await;
        assert!(may_run_out(&mut conn, &run).await.unwrap(), "{offer}: it is a rung");
        loss::lost(&mut conn, run.run_id, &Loss::new("ended", Blame::Nobody)).await.unwrap();
    }
}
