//! Tests of what survives: a deposed scheduler writes nothing, a provider that does not answer holds back no other, and
//! a check of files that ended with its scheduler is no attempt.

use std::collections::BTreeSet;

use attune_domain::id::ProjectId;
use attune_store::{
    config::DatabaseConfig, error::StoreError, jobs::validation::MAX_VALIDATION_INTERRUPTIONS, leadership,
};
use sqlx::{ConnectOptions, PgConnection};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{error::SchedulerError, leader, validations::Validations};

/// A provider that does not answer while it is broken, and has the processes of `inner`.
struct Broken {
    inner: Arc<Remembers>,
    is_broken: AtomicBool,
    /// True if it hangs while it is broken; otherwise it returns errors.
    hangs: bool,
}

impl Broken {
    fn new(hangs: bool) -> Arc<Self> {
        let inner = Remembers { name: "far", ..Remembers::default() };
        Arc::new(Self { inner: Arc::new(inner), is_broken: AtomicBool::new(false), hangs })
    }

    fn breaks(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::Relaxed);
    }

    async fn check(&self) -> Result<(), ProviderError> {
        if !self.is_broken.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(ProviderError { action: "querying the cluster".into(), cause: "no route to host".into() })
    }
}

impl Provider for Broken {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn outlives_scheduler(&self) -> bool {
        true
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        Box::pin(async {
            self.check().await?;
            self.inner.offers().await
        })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        self.inner.launch(launch)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        Box::pin(async {
            self.check().await?;
            self.inner.list().await
        })
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        let handle = handle.to_owned();
        Box::pin(async move {
            self.check().await?;
            self.inner.stop(&handle).await
        })
    }
}

/// Creates a platform with a machine of this much memory, in MiB, and a large one, `far`.
async fn with_far(pool: PgPool, near: u64, hangs: bool) -> (House, Arc<Broken>) {
    let near = Arc::new(Remembers { memory: Bytes::mib(near), ..Remembers::default() });
    let far = Broken::new(hangs);
    let providers = Providers::new(vec![near.clone(), far.clone()]);
    (House::with(pool, near, providers).await, far)
}

#[sqlx::test(migrations = false)]
async fn a_deposed_scheduler_starts_and_ends_nothing(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let (running, waiting) = (house.queued().await, house.queued().await);
    house.dispatch(running).await;
    leadership::depose(&mut house.app.pool.acquire().await.unwrap()).await.unwrap();
    house.provider.end(&house.provider.handles()[0], "attune-trainer ended (exit status: 1)");
    let is_deposed =
        |result: Result<(), SchedulerError>| matches!(result, Err(SchedulerError::Store(StoreError::Deposed)));
    let pass = repair::pass(&house.app, &mut *house.memory.lock().await).await.map(drop);
    assert!(is_deposed(pass));
    assert!(is_deposed(repair::hand_back(&house.app).await));
    assert!(is_deposed(DispatchJob { job_id: waiting }.handle(house.app.clone()).await));
    let states = [house.job(running).await.state, house.job(waiting).await.state];
    assert_eq!(states, [JobState::Provisioning, JobState::Queued]);
    assert_eq!(house.active_nodes().await, 1);
    // The next leader repairs.
    let mut next = house.app.clone();
    next.leader = Arc::new(Leader::new(Term::new(1)));
    repair::pass(&next, &mut *house.memory.lock().await).await.unwrap();
    assert_eq!(house.job(running).await.state, JobState::Queued);
}

#[sqlx::test(migrations = false)]
async fn a_deposed_scheduler_steps_down_and_a_second_one_waits_until_its_stop(pool: PgPool) {
    testing::seed(&pool).await.unwrap();
    let url = pool.connect_options().to_url_lossy().to_string();
    let config = DatabaseConfig { url: url.into(), owner_url: None, max_connections: 2 };
    let (stop, patience) = (CancellationToken::new(), Duration::from_secs(5));
    let held = leader::take(&config, patience, &stop).await.unwrap().unwrap();
    let leader = Leader::new(held.term());
    let second = CancellationToken::new();
    second.cancel();
    assert!(leader::take(&config, patience, &second).await.unwrap().is_none());

    let depose = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        leadership::depose(&mut pool.acquire().await.unwrap()).await.unwrap();
        assert!(matches!(leader.begin(&pool).await, Err(StoreError::Deposed)));
    };
    let began = Instant::now();
    let (kept, ()) = tokio::join!(leader::keep(&config, held, (&leader, &pool), &stop), depose);
    assert_eq!(kept.unwrap_err().to_string(), "another scheduler has taken over");
    assert!(began.elapsed() < Duration::from_secs(2), "at its first transaction, not at the next sign of life");
}

#[sqlx::test(migrations = false)]
async fn restarts_of_the_scheduler_count_against_no_job(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    for attempt in 1..=5 {
        house.dispatch(id).await;
        assert_eq!(house.job(id).await.attempts, attempt, "it is started again without a pause");
        house.provider.processes.lock().unwrap().clear();
        house.reconcile().await;
        let job = house.job(id).await;
        assert_eq!((job.state, job.barren_attempts), (JobState::Queued, 0));
    }
}

#[sqlx::test(migrations = false)]
async fn jobs_that_fit_only_at_a_provider_that_does_not_answer_wait_with_the_reason(pool: PgPool) {
    let (house, far) = with_far(pool, 1, false).await;
    far.breaks(true);
    let large = house.queued().await;
    house.dispatch(large).await;
    let job = house.job(large).await;
    let reason = job.waiting_reason.unwrap();
    let said = "provider far cannot be reached: querying the cluster failed: no route to host";
    assert_eq!((job.state, reason.as_str()), (JobState::Queued, said));
    far.breaks(false);
    house.dispatch(large).await;
    assert_eq!(house.job(large).await.state, JobState::Provisioning);
    assert_eq!(far.inner.handles().len(), 1);
    // It had answered before: its last offers are known, and nothing of them is free.
    far.breaks(true);
    let next = house.queued().await;
    house.dispatch(next).await;
    assert_eq!(house.job(next).await.waiting_reason.as_deref(), Some(said));
}

#[sqlx::test(migrations = false)]
async fn a_provider_that_hangs_stops_neither_repairs_nor_starts_at_the_others(pool: PgPool) {
    let (house, far) = with_far(pool, 900, true).await;
    let (first, second) = (house.queued().await, house.queued().await);
    house.dispatch(first).await;
    assert_eq!((house.provider.handles().len(), far.inner.handles().len()), (1, 1));
    far.breaks(true);
    house.provider.end(&house.provider.handles()[0], "attune-trainer ended (exit status: 1)");
    let began = Instant::now();
    assert_eq!(house.unlisted().await, ["far"]);
    let mut states = [house.job(first).await.state, house.job(second).await.state];
    states.sort_by_key(|state| *state == JobState::Queued);
    assert_eq!(states, [JobState::Provisioning, JobState::Queued], "only the run at `local` was lost");
    house.pass_a_minute().await;
    let queued = if house.job(first).await.state == JobState::Queued { first } else { second };
    house.dispatch(queued).await;
    assert_eq!(house.job(queued).await.state, JobState::Provisioning);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

/// Begins the term of another scheduler, and lets this platform continue in it.
async fn taken_over(house: &mut House, term: i64) {
    leadership::depose(&mut house.app.pool.acquire().await.unwrap()).await.unwrap();
    house.app.leader = Arc::new(Leader::new(Term::new(term)));
}

#[sqlx::test(migrations = false)]
async fn a_check_that_ended_with_its_scheduler_is_no_attempt(pool: PgPool) {
    let mut house = House::new(pool, Remembers::default()).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let id = new_job(&mut conn, house.seed).await.unwrap();
    // Each scheduler is killed while it checks the files, and the next one takes over.
    for term in 0..10 {
        let interruptions = i32::try_from(term).unwrap();
        let begun = validation::begin(&mut conn, id).await.unwrap();
        assert_eq!(begun, Some(Begun { attempt: 1, interruptions }));
        taken_over(&mut house, term + 1).await;
    }
    // This check ends, for a reason that is not the job's fault: the object store is unreachable.
    assert!(ValidateJob { job_id: id }.handle(house.app.clone()).await.is_err());
    assert_eq!(house.job(id).await.state, JobState::Validating);
    let begun = validation::begin(&mut conn, id).await.unwrap();
    assert_eq!(begun, Some(Begun { attempt: 1, interruptions: 0 }), "nothing counts");
    // An attempt that ended in its own scheduler counts, and is not taken for an interrupted one by the next.
    validation::end(&mut conn, id).await.unwrap();
    taken_over(&mut house, 11).await;
    let begun = validation::begin(&mut conn, id).await.unwrap();
    assert_eq!(begun, Some(Begun { attempt: 2, interruptions: 0 }));
}

#[sqlx::test(migrations = false)]
async fn limit_files_that_end_each_scheduler_are_not_checked_without_end(pool: PgPool) {
    let mut house = House::new(pool, Remembers::default()).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let id = new_job(&mut conn, house.seed).await.unwrap();
    for term in 0..=MAX_VALIDATION_INTERRUPTIONS {
        assert!(validation::begin(&mut conn, id).await.unwrap().is_some());
        taken_over(&mut house, i64::from(term) + 1).await;
    }
    ValidateJob { job_id: id }.handle(house.app.clone()).await.unwrap();
    let job = house.job(id).await;
    let error = job.error.unwrap();
    assert_eq!((job.state, error.code.as_str()), (JobState::Failed, "validation_failed"));
    assert!(error.message.contains("the scheduler ended during more than 20 checks in a row"), "{}", error.message);
}

#[sqlx::test(migrations = false)]
async fn limit_a_check_that_takes_too_long_fails_its_job(pool: PgPool) {
    let mut house = House::new(pool, Remembers::default()).await;
    let id = new_job(&mut house.app.pool.acquire().await.unwrap(), house.seed).await.unwrap();
    house.app.validations = Validations::limited(Duration::ZERO);
    ValidateJob { job_id: id }.handle(house.app.clone()).await.unwrap();
    let job = house.job(id).await;
    let error = job.error.unwrap();
    assert_eq!((job.state, error.code.as_str()), (JobState::Failed, "validation_timeout"));
    assert_eq!(error.param.as_deref(), Some("training_file"));
}

/// Returns the jobs that may be checked next.
async fn oldest(conn: &mut PgConnection, busy: &[ProjectId], tried: &[JobId]) -> BTreeSet<JobId> {
    let waiting = validation::waiting(conn, busy, tried).await.unwrap();
    waiting.into_iter().map(|(_, job)| job).collect()
}

#[sqlx::test(migrations = false)]
async fn a_worker_checks_the_waiting_jobs_of_all_projects_in_turn(pool: PgPool) {
    let mut house = House::new(pool, Remembers::default()).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let other = testing::neighbor(&mut conn, house.seed, "other").await.unwrap();
    let mut jobs = Vec::new();
    for seed in [house.seed, house.seed, other] {
        jobs.push(new_job(&mut conn, seed).await.unwrap());
    }
    assert_eq!(oldest(&mut conn, &[], &[]).await, BTreeSet::from([jobs[0], jobs[2]]));
    assert_eq!(oldest(&mut conn, &[], &jobs[..1]).await, BTreeSet::from([jobs[1], jobs[2]]));
    assert_eq!(oldest(&mut conn, &[house.seed.project_id], &[]).await, BTreeSet::from([jobs[2]]));
    // One message is enough for all.
    house.app.validations = Validations::limited(Duration::ZERO);
    ValidateJob { job_id: jobs[0] }.handle(house.app.clone()).await.unwrap();
    for job in jobs {
        assert_eq!(house.job(job).await.state, JobState::Failed);
    }
    assert!(house.app.validations.jobs().is_empty());
}

#[sqlx::test(migrations = false)]
async fn limit_a_check_that_ends_its_process_is_not_tried_without_end(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let id = new_job(&mut conn, house.seed).await.unwrap();
    // An outage is not the job's fault, however long it lasts: the object store is unreachable here.
    for _ in 0..2 {
        assert!(ValidateJob { job_id: id }.handle(house.app.clone()).await.is_err());
        assert_eq!(house.job(id).await.state, JobState::Validating);
    }
    // Each of these attempts broke off, and the same scheduler tries again.
    for attempt in 1..=MAX_VALIDATION_ATTEMPTS {
        let begun = Begun { attempt, interruptions: 0 };
        assert_eq!(validation::begin(&mut conn, id).await.unwrap(), Some(begun));
    }
    ValidateJob { job_id: id }.handle(house.app.clone()).await.unwrap();
    let job = house.job(id).await;
    assert_eq!(job.state, JobState::Failed);
    let error = job.error.unwrap();
    assert_eq!(error.code, "validation_failed");
    assert!(error.message.contains("in 3 attempts: the validating process ended each time"), "{}", error.message);
}
