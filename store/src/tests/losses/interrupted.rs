//! Runs that end through no fault of their jobs: no attempt counts, and what is done again is refunded.

use attune_domain::{
    job::{JobState, Priority},
    run::RunEvent,
};
use sqlx::{PgConnection, PgPool};

use crate::tests::money::{an_hour_ago, everything, priced_job};
use crate::{
    jobs::{
        job::{self, Job},
        job_pause,
        loss::{self, Blame, Loss},
    },
    runs::{report, run::Run},
    tenancy::usage,
    testing::{Seed, checkpointed, claimed_run, published, rank, report as says, seed, started, stepped},
};

/// The reports of a run with one checkpoint, after its first step, and two more steps.
async fn three_steps(conn: &mut PgConnection, run: &Run) {
    let told = [started(), stepped(1), checkpointed(1, '1'), stepped(2), stepped(3)];
    report::take(conn, run.run_id, &says(run, 0, &told)).await.unwrap();
}

/// Moves the checkpoint of a run to half an hour ago.
async fn saved_half_an_hour_ago(conn: &mut PgConnection, run: &Run) {
    let half = "update checkpoint set created_at = now() - interval '30 minutes' where run_id = $1";
    sqlx::query(half).bind(run.run_id.uuid()).execute(conn).await.unwrap();
}

/// Returns the kind, the tokens and the cost of each line of a job's usage.
async fn lines(conn: &mut PgConnection, seed: Seed) -> Vec<(String, i64, i64)> {
    let sums = usage::sums(conn, seed.project_id, &everything()).await.unwrap();
    sums.into_iter().map(|sums| (sums.kind.unwrap_or_default(), sums.trained_tokens, sums.micro_usd)).collect()
}

async fn job_of(conn: &mut PgConnection, run: &Run) -> Job {
    job::load(conn, run.job_id).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn an_interrupted_run_counts_as_no_attempt_and_is_refunded_what_is_done_again(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = priced_job(&mut conn, seed, 1_000_000).await;
    let first = claimed_run(&mut conn, id).await.unwrap();
    an_hour_ago(&mut conn, &first).await;
    three_steps(&mut conn, &first).await;
    saved_half_an_hour_ago(&mut conn, &first).await;
    let interrupted = says(&first, 5, &[RunEvent::Stopped { step: 3 }]);
    report::take(&mut conn, first.run_id, &interrupted).await.unwrap();
    let job = job_of(&mut conn, &first).await;
    assert_eq!((job.state, job.barren_attempts, job.charged_tokens), (JobState::Queued, 0, 80));
    assert!((1_000_000..1_001_000).contains(&job.micro_usd), "half an hour and a step: {}", job.micro_usd);
    let lines = lines(&mut conn, seed).await;
    assert_eq!((lines[0].0.as_str(), lines[0].1, lines[1].0.as_str(), lines[1].1), ("refund", -160, "training", 240));

    let second = claimed_run(&mut conn, id).await.unwrap();
    let told = [started(), stepped(2), stepped(3), published()];
    report::take(&mut conn, second.run_id, &says(&second, 0, &told)).await.unwrap();
    let job = job_of(&mut conn, &second).await;
    assert_eq!((job.state, job.charged_tokens), (JobState::Succeeded, 240));
}

#[sqlx::test(migrations = false)]
async fn a_run_that_ended_with_its_scheduler_is_refunded_and_one_that_is_at_fault_is_not(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    for (blame, charged) in [(Blame::Nobody, 80), (Blame::Circumstances, 80), (Blame::Job { max_attempts: 3 }, 240)] {
        let id = priced_job(&mut conn, seed, 1_000_000).await;
        let run = claimed_run(&mut conn, id).await.unwrap();
        three_steps(&mut conn, &run).await;
        loss::lost(&mut conn, run.run_id, &Loss::new("ended", blame)).await.unwrap();
        let job = job_of(&mut conn, &run).await;
        assert_eq!((job.state, job.charged_tokens, job.barren_attempts), (JobState::Queued, charged, 0), "{blame:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_run_that_dies_while_it_stops_for_another_job_is_refunded_and_one_that_a_user_pauses_is_not(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let at_fault = Blame::Job { max_attempts: 3 };
    for (blame, is_paused) in [
        (at_fault, false),
        (Blame::Circumstances, false),
        (Blame::Nobody, false),
        (at_fault, true),
        (Blame::Circumstances, true),
        (Blame::Nobody, true),
    ] {
        let id = priced_job(&mut conn, seed, 1_000_000).await;
        rank(&mut conn, id, Priority::Low, true).await.unwrap();
        let run = claimed_run(&mut conn, id).await.unwrap();
        an_hour_ago(&mut conn, &run).await;
        three_steps(&mut conn, &run).await;
        saved_half_an_hour_ago(&mut conn, &run).await;
        assert!(job_pause::preempt(&mut conn, id, Priority::High).await.unwrap());
        if is_paused {
            job_pause::pause(&mut conn, seed.project_id, id).await.unwrap();
        }
        loss::lost(&mut conn, run.run_id, &Loss::new("The trainer died", blame)).await.unwrap();
        let job = job_of(&mut conn, &run).await;
        let (state, tokens, usd) =
            if is_paused { (JobState::Paused, 240, 2_000_000) } else { (JobState::Queued, 80, 1_000_000) };
        assert_eq!((job.state, job.charged_tokens), (state, tokens), "{blame:?}");
        assert!((usd..usd + 2_000).contains(&job.micro_usd), "{blame:?}: {} of {usd}", job.micro_usd);
    }
}

#[sqlx::test(migrations = false)]
async fn a_run_that_dies_while_it_stops_for_another_job_counts_as_no_attempt(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    for (is_preempted, attempts) in [(true, 0), (false, 1)] {
        let id = priced_job(&mut conn, seed, 1_000_000).await;
        rank(&mut conn, id, Priority::Low, true).await.unwrap();
        let run = claimed_run(&mut conn, id).await.unwrap();
        if is_preempted {
            assert!(job_pause::preempt(&mut conn, id, Priority::High).await.unwrap());
        }
        let died = Loss::new("The trainer died", Blame::Job { max_attempts: 3 });
        assert_eq!(loss::lost(&mut conn, run.run_id, &died).await.unwrap(), Some(JobState::Queued));
        assert_eq!(job_of(&mut conn, &run).await.barren_attempts, attempts);
    }
}

#[sqlx::test(migrations = false)]
async fn a_job_that_is_cancelled_pays_for_the_steps_that_it_had(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = priced_job(&mut conn, seed, 1_000_000).await;
    let run = claimed_run(&mut conn, id).await.unwrap();
    three_steps(&mut conn, &run).await;
    job::cancel(&mut conn, seed.project_id, id).await.unwrap();
    loss::lost(&mut conn, run.run_id, &Loss::new("killed", Blame::Nobody)).await.unwrap();
    let job = job_of(&mut conn, &run).await;
    assert_eq!((job.state, job.charged_tokens), (JobState::Cancelled, 240));
}
