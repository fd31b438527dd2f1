//! A job's steps, message and cancellation.

use attune_domain::{
    id::{JobEventId, JobId, ProjectId, RunId},
    job::{JobEvent, JobState},
};
use sqlx::PgPool;

use crate::{
    error::StoreError,
    ids,
    jobs::{
        candidate,
        job::{self, JobError, Step},
        job_event,
        loss::{self, Blame, Loss},
        waiting::{self, WAITING_FOR_PLAN},
    },
    queue::{DispatchJob, ValidateJob},
    runs::report,
    tenancy::money,
    testing::{self, Seed, checkpointed, claimed_run, new_job, queued_job, report as says, seed, started},
};

async fn sentences(pool: &PgPool, seed: Seed, id: JobId) -> Vec<String> {
    let mut conn = pool.acquire().await.unwrap();
    let newest_first = job_event::list(&mut conn, seed.project_id, id, None, 100).await.unwrap();
    newest_first.into_iter().rev().map(|event| event.message).collect()
}

fn lost(counts: bool) -> Loss {
    Loss::new("The trainer died", if counts { Blame::Job { max_attempts: 3 } } else { Blame::Nobody })
}

#[sqlx::test(migrations = false)]
async fn a_job_and_its_message_are_kept_or_lost_together(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    new_job(&mut tx, seed).await.unwrap();
    tx.rollback().await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    assert_eq!(testing::messages::<ValidateJob>(&mut conn).await.unwrap(), 0);

    let mut tx = pool.begin().await.unwrap();
    let id = new_job(&mut tx, seed).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(testing::messages::<ValidateJob>(&mut conn).await.unwrap(), 1);
    let told = sentences(&pool, seed, id).await;
    assert_eq!(told[0], format!("Created fine-tuning job: {id}"));
    assert_eq!(told[1], format!("Validating training file: {}", seed.file_id));
}

#[sqlx::test(migrations = false)]
async fn of_two_who_step_a_job_at_once_one_comes_too_late(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let claim = |pool: PgPool| async move {
        let mut tx = pool.begin().await.unwrap();
        let claimed = claimed_run(&mut tx, id).await;
        // The other connection waits for this row now.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        if claimed.is_ok() {
            tx.commit().await.unwrap();
        }
        claimed
    };
    let (one, other) = tokio::join!(claim(pool.clone()), claim(pool.clone()));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let late = one.err().or(other.err()).unwrap();
    assert!(matches!(late, StoreError::Illegal(illegal) if illegal.from == JobState::Provisioning), "{late:?}");
    assert_eq!(job::load(&mut conn, id).await.unwrap().attempts, 1);
}

#[sqlx::test(migrations = false)]
async fn a_run_that_does_not_hold_the_job_cannot_step_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    claimed_run(&mut conn, id).await.unwrap();
    let stranger: RunId = ids::id();
    let stepped = job::step_held(&mut conn, id, stranger, &Step::new(JobEvent::RunStarted, "")).await;
    assert!(matches!(stepped, Err(StoreError::Stale)), "{stepped:?}");
}

#[sqlx::test(migrations = false)]
async fn a_refusal_is_the_jobs_error_and_an_event(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = new_job(&mut conn, seed).await.unwrap();
    let error = JobError { code: "row_too_long".into(), message: "line 3".into(), param: None };
    job::step(&mut conn, id, &Step::failure(JobEvent::DataRefused, error.clone())).await.unwrap();
    let job = job::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((job.state, job.error), (JobState::Failed, Some(error)));
    assert!(job.finished_at.is_some());
    let events = job_event::list(&mut conn, seed.project_id, id, None, 1).await.unwrap();
    assert_eq!((events[0].level.as_str(), events[0].message.as_str()), ("error", "line 3"));
}

#[sqlx::test(migrations = false)]
async fn another_projects_job_does_not_exist(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let stranger: ProjectId = ids::id();
    assert!(matches!(job::get(&mut conn, stranger, id).await, Err(StoreError::NotFound(_))));
    assert!(matches!(job::cancel(&mut conn, stranger, id).await, Err(StoreError::NotFound(_))));
    assert!(job_event::list(&mut conn, stranger, id, None, 10).await.unwrap().is_empty());
    assert_eq!(job::load(&mut conn, id).await.unwrap().state, JobState::Queued);
}

#[sqlx::test(migrations = false)]
async fn a_cancel_ends_a_waiting_job_and_notifies_a_running_one(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let waiting = queued_job(&mut conn, seed).await.unwrap();
    let cancelled = job::cancel(&mut conn, seed.project_id, waiting).await.unwrap();
    assert_eq!(cancelled.state, JobState::Cancelled);
    let again = job::cancel(&mut conn, seed.project_id, waiting).await;
    assert!(matches!(again, Err(StoreError::Illegal(_))), "{again:?}");

    let held = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, held).await.unwrap();
    for _ in 0..2 {
        let asked = job::cancel(&mut conn, seed.project_id, held).await.unwrap();
        assert_eq!(asked.state, JobState::Cancelling);
    }
    let ended = loss::lost(&mut conn, run.run_id, &lost(true)).await.unwrap();
    assert_eq!(ended, Some(JobState::Cancelled));
}

#[sqlx::test(migrations = false)]
async fn lost_runs_are_tried_again_until_too_many_bring_nothing(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    testing::lose_messages(&mut conn).await.unwrap();
    // A shutdown of the platform does not count.
    let mut states = Vec::new();
    for counts in [true, false, false, true, true] {
        let run = claimed_run(&mut conn, id).await.unwrap();
        states.push(loss::lost(&mut conn, run.run_id, &lost(counts)).await.unwrap().unwrap());
        assert_eq!(loss::lost(&mut conn, run.run_id, &lost(counts)).await.unwrap(), None, "it is lost only once");
    }
    use JobState::{Failed, Queued};
    assert_eq!(states, [Queued, Queued, Queued, Queued, Failed]);
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 4);
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.attempts, job.error.unwrap().code.as_str()), (5, "run_lost"));
}

#[sqlx::test(migrations = false)]
async fn pages_of_jobs_and_events_meet_without_gap_or_overlap(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(new_job(&mut conn, seed).await.unwrap());
    }
    let everything = serde_json::json!({});
    let first = job::list(&mut conn, seed.project_id, everything.clone(), None, 2).await.unwrap();
    let rest = job::list(&mut conn, seed.project_id, everything.clone(), Some(first[1].job_id), 10).await.unwrap();
    let seen: Vec<_> = first.iter().chain(&rest).map(|job| job.job_id).collect();
    assert_eq!(seen, made.iter().rev().copied().collect::<Vec<_>>());

    let newest = job_event::list(&mut conn, seed.project_id, made[0], None, 1).await.unwrap();
    let after: JobEventId = newest[0].job_event_id;
    let place = job_event::place(&mut conn, seed.project_id, made[0], after).await.unwrap();
    assert_eq!(place, Some(newest[0].sequence));
    assert_eq!(job_event::place(&mut conn, seed.project_id, made[1], after).await.unwrap(), None);
    let older = job_event::list(&mut conn, seed.project_id, made[0], place, 10).await.unwrap();
    assert_eq!(older.len(), 1);
    assert!(older[0].message.starts_with("Created"));
}

#[sqlx::test(migrations = false)]
async fn candidates_are_loaded_together_and_one_that_cannot_be_read_is_an_error_of_its_own(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (new, again) = (queued_job(&mut conn, seed).await.unwrap(), queued_job(&mut conn, seed).await.unwrap());
    let broken = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, again).await.unwrap();
    let told = [started(), checkpointed(1, '1'), checkpointed(2, '2')];
    report::take(&mut conn, run.run_id, &says(&run, 0, &told)).await.unwrap();
    loss::lost(&mut conn, run.run_id, &lost(false)).await.unwrap();
    money::set_price_cap(&mut conn, seed.project_id, again, Some(5)).await.unwrap();
    let unreadable = sqlx::query("update job set spec = '\"?\"' where job_id = $1").bind(broken.uuid());
    unreadable.execute(&mut *conn).await.unwrap();

    let mut found = candidate::load(&mut conn, &[new, again, broken, ids::id()]).await.unwrap();
    assert_eq!(found.len(), 3, "the fourth does not exist");
    let error = found.remove(&broken).unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { column: "job.spec", .. }), "{error:?}");
    let new = found.remove(&new).unwrap().unwrap();
    assert_eq!((new.state, new.kept, new.resume_id, new.has_cost_limit), (JobState::Queued, None, None, false));
    assert_eq!((new.token_facts.unwrap().training.longest_row, new.total_steps), (80, Some(75)));
    let again = found.remove(&again).unwrap().unwrap();
    let newest: uuid::Uuid =
        sqlx::query_scalar("select checkpoint_id from checkpoint where step = 2").fetch_one(&mut *conn).await.unwrap();
    assert_eq!((again.kept, again.has_cost_limit), (Some(run.plan), true));
    assert_eq!(again.resume_id.map(|id| id.uuid()), Some(newest));
}

#[sqlx::test(migrations = false)]
async fn a_wait_for_a_plan_is_reported_once_for_each_job_and_wait(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (one, two) = (queued_job(&mut conn, seed).await.unwrap(), queued_job(&mut conn, seed).await.unwrap());
    let waits = |part: &str| [(one, format!("{part} of one")), (two, format!("{part} of two"))];
    waiting::for_plan(&mut conn, &waits("first")[..1]).await.unwrap();
    for _ in 0..2 {
        waiting::for_plan(&mut conn, &waits("second")).await.unwrap();
    }
    let run = claimed_run(&mut conn, one).await.unwrap();
    loss::lost(&mut conn, run.run_id, &lost(false)).await.unwrap();
    waiting::for_plan(&mut conn, &waits("third")).await.unwrap();
    let mut said = Vec::new();
    for id in [one, two] {
        let events = job_event::following(&mut conn, seed.project_id, id, 0, 100).await.unwrap();
        let of_plan = |event: &job_event::JobEventRow| {
            event.level == "info" && event.data.as_ref().is_some_and(|data| data["code"] == WAITING_FOR_PLAN)
        };
        said.extend(events.into_iter().filter(of_plan).map(|event| event.message));
    }
    assert_eq!(said, ["first of one", "third of one", "second of two"]);
}
