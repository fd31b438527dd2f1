//! Pause and resume of jobs.

use attune_domain::{
    job::{JobState, PauseReason},
    run::Directive,
    run::RunEvent,
};
use sqlx::PgPool;

use crate::{
    error::StoreError,
    jobs::{
        job, job_event, job_pause,
        loss::{self, Blame, Loss},
        snapshot,
    },
    queue::{DispatchJob, ValidateJob},
    runs::{node, report},
    testing::{self, checkpointed, claimed_run, new_job, queued_job, report as says, seed, started, stepped},
};

#[sqlx::test(migrations = false)]
async fn a_running_job_is_paused_at_its_next_step_and_continues_from_there(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), stepped(1)])).await.unwrap();
    for _ in 0..2 {
        let asked = job_pause::pause(&mut conn, seed.project_id, id).await.unwrap();
        assert_eq!((asked.state, asked.pause_reason), (JobState::Pausing, Some(PauseReason::Asked)));
    }
    let told = [stepped(2), checkpointed(2, '1')];
    let reply = report::take(&mut conn, run.run_id, &says(&run, 2, &told)).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    report::take(&mut conn, run.run_id, &says(&run, 4, &[RunEvent::Stopped { step: 2 }])).await.unwrap();
    let paused = job::load(&mut conn, id).await.unwrap();
    assert_eq!((paused.state, paused.run_id, paused.finished_at), (JobState::Paused, None, None));
    assert!(node::active(&mut conn, "local").await.unwrap().is_empty(), "its node is free");

    testing::lose_messages(&mut conn).await.unwrap();
    let resumed = job_pause::resume(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((resumed.state, resumed.pause_reason), (JobState::Queued, None));
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 1);
    let again = job_pause::resume(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(again.state, JobState::Queued, "to resume twice is to resume once");
    let second = claimed_run(&mut conn, id).await.unwrap();
    assert!(second.resume_id.is_some());
    let told = job_event::list(&mut conn, seed.project_id, id, None, 2).await.unwrap();
    assert_eq!(told[1].message, "Fine-tuning job resumed: it is queued again and continues after step 2");
}

#[sqlx::test(migrations = false)]
async fn a_waiting_job_is_paused_at_once_and_one_with_unchecked_rows_is_checked_later(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (unchecked, queued) = (new_job(&mut conn, seed).await.unwrap(), queued_job(&mut conn, seed).await.unwrap());
    testing::lose_messages(&mut conn).await.unwrap();
    for (id, next) in [(unchecked, JobState::Validating), (queued, JobState::Queued)] {
        assert_eq!(job_pause::pause(&mut conn, seed.project_id, id).await.unwrap().state, JobState::Paused);
        assert!(!snapshot::unmeasured(&mut conn, 10).await.unwrap().contains(&id));
        assert_eq!(job_pause::resume(&mut conn, seed.project_id, id).await.unwrap().state, next);
    }
    assert_eq!(testing::messages::<ValidateJob>(&mut conn).await.unwrap(), 1);
}

#[sqlx::test(migrations = false)]
async fn a_pause_that_is_reverted_leaves_the_trainer_running(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started()])).await.unwrap();
    job_pause::pause(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(job_pause::resume(&mut conn, seed.project_id, id).await.unwrap().state, JobState::Running);
    let reply = report::take(&mut conn, run.run_id, &says(&run, 1, &[stepped(1)])).await.unwrap();
    assert_eq!(reply.directive, Directive::Continue);
    // The trainer had received the stop already: it counts as an ordinary loss.
    report::take(&mut conn, run.run_id, &says(&run, 2, &[RunEvent::Stopped { step: 1 }])).await.unwrap();
    assert_eq!(job::load(&mut conn, id).await.unwrap().state, JobState::Queued);
}

#[sqlx::test(migrations = false)]
async fn a_trainer_that_dies_while_it_pauses_leaves_a_paused_job(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    job_pause::pause(&mut conn, seed.project_id, id).await.unwrap();
    let loss = Loss::new("died", Blame::Job { max_attempts: 1 });
    assert_eq!(loss::lost(&mut conn, run.run_id, &loss).await.unwrap(), Some(JobState::Paused));
    assert_eq!(job::cancel(&mut conn, seed.project_id, id).await.unwrap().state, JobState::Cancelled);
    for late in [
        job_pause::pause(&mut conn, seed.project_id, id).await,
        job_pause::resume(&mut conn, seed.project_id, id).await,
    ] {
        assert!(matches!(late, Err(StoreError::Illegal(_))), "{late:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn events_are_followed_without_gap_or_overlap(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let all = job_event::list(&mut conn, seed.project_id, id, None, 100).await.unwrap();
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let part = job_event::following(&mut conn, seed.project_id, id, after, 2).await.unwrap();
        let Some(last) = part.last() else { break };
        after = last.sequence;
        seen.extend(part);
    }
    assert_eq!(seen, all.into_iter().rev().collect::<Vec<_>>());
}

#[sqlx::test(migrations = false)]
async fn a_number_is_given_out_only_to_who_holds_the_job(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let write = |pool: PgPool, text: &'static str, hold_ms| async move {
        let mut tx = pool.begin().await.unwrap();
        job_event::message(&mut tx, id, job_event::Level::Info, text).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(hold_ms)).await;
        tx.commit().await.unwrap();
    };
    let second = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        write(pool.clone(), "second", 0).await;
    };
    let watch = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut other = pool.acquire().await.unwrap();
        let told = job_event::list(&mut other, seed.project_id, id, None, 1).await.unwrap();
        assert_ne!(told[0].message, "second", "seen before the first");
    };
    tokio::join!(write(pool.clone(), "first", 200), second, watch);
    let told = job_event::list(&mut conn, seed.project_id, id, None, 2).await.unwrap();
    assert_eq!([told[1].message.as_str(), told[0].message.as_str()], ["first", "second"]);
}
