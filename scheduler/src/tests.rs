//! Tests of the reconciler and dispatch against a real PostgreSQL, with a provider that only records launches.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    job::{JobState, PauseReason},
    offer::Offer,
    run::RunEvent,
    serve::ReplicaReport,
};
use attune_store::{
    jobs::{
        checkpoint, job,
        validation::{self, Begun, MAX_VALIDATION_ATTEMPTS},
    },
    leadership::Term,
    queue::{DispatchJob, EnsureReplica, ValidateJob},
    replica::{self, ReplicaState, ServedBase},
    runs::{node, report, run},
    tenancy::money,
    testing::{self, Seed, checkpointed, new_job, queued_job, started},
};
use futures::future::BoxFuture;
use sqlx::PgPool;

use crate::{
    app::App,
    config::{Leases, Serving},
    error::ProviderError,
    leader::Leader,
    liveness::ApiProbe,
    providers::{
        provider::{Ended, Launch, Process, Provider},
        registry::Providers,
    },
    reconciler::repair::{self, Memory},
    tasks::Handle,
};

mod autoscaler;
mod batches;
mod bench_queue;
mod out_of_memory;
mod pending;
mod queue;
mod starts;
mod survival;
mod two_providers;

/// A provider that launches nothing and records what it should run.
struct Remembers {
    name: &'static str,
    memory: Bytes,
    /// The number of concurrent runs.
    slots: usize,
    processes: Mutex<BTreeMap<String, Option<Ended>>>,
    refuses: bool,
    /// True while it cannot list its processes.
    is_unlisted: AtomicBool,
}

impl Default for Remembers {
    fn default() -> Self {
        Self {
            name: "local",
            memory: Bytes::mib(900),
            slots: 1,
            processes: Mutex::default(),
            refuses: false,
            is_unlisted: AtomicBool::new(false),
        }
    }
}

impl Remembers {
    fn handles(&self) -> Vec<String> {
        self.processes.lock().unwrap().keys().cloned().collect()
    }

    fn end(&self, handle: &str, how: &str) {
        self.end_with(handle, Ended::program(how));
    }

    fn end_with(&self, handle: &str, ended: Ended) {
        self.processes.lock().unwrap().insert(handle.into(), Some(ended));
    }
}

impl Provider for Remembers {
    fn name(&self) -> &str {
        self.name
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        let offer = Offer { free_slots: self.slots, ..Offer::cpu(self.name, "this machine", self.memory, 2) };
        Box::pin(async { Ok(vec![offer]) })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        Box::pin(async move {
            if self.refuses {
                let cause = "no such program".into();
                return Err(ProviderError { action: "starting attune-trainer".into(), cause });
            }
            self.processes.lock().unwrap().insert(launch.name.clone(), None);
            Ok(launch.name)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        if self.is_unlisted.load(Ordering::Relaxed) {
            let error = ProviderError { action: "listing the processes".into(), cause: "no route to host".into() };
            return Box::pin(async { Err(error) });
        }
        let processes = self.processes.lock().unwrap();
        let all =
            processes.iter().map(|(h, e)| Process { handle: h.clone(), pending: None, ended: e.clone() }).collect();
        Box::pin(async { Ok(all) })
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        self.processes.lock().unwrap().remove(handle);
        Box::pin(async { Ok(()) })
    }
}

struct House {
    app: App,
    provider: Arc<Remembers>,
    seed: Seed,
    memory: tokio::sync::Mutex<Memory>,
    /// True while the API answers.
    api: Arc<AtomicBool>,
}

/// Starts an API that answers while `up` is true, and returns its address. Its thread ends with the test's process.
fn api(up: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut asked in listener.incoming().flatten() {
            if up.load(Ordering::Relaxed) && asked.read(&mut [0; 1024]).is_ok() {
                drop(asked.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
            }
        }
    });
    url
}

impl House {
    async fn new(pool: PgPool, provider: Remembers) -> Self {
        let provider = Arc::new(provider);
        Self::with(pool, provider.clone(), Providers::new(vec![provider])).await
    }

    /// Creates a platform with all `providers`, of which `provider` is one.
    async fn with(pool: PgPool, provider: Arc<Remembers>, providers: Providers) -> Self {
        // Fails only if another test of this process has installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seed = testing::seed(&pool).await.unwrap();
        // No test here accesses an object.
        let objects = testing::unreachable_objects();
        let up = Arc::new(AtomicBool::new(true));
        let app = App {
            pool,
            objects,
            api: ApiProbe::new(&api(up.clone())).unwrap(),
            providers,
            leader: Arc::new(Leader::new(Term::new(0))),
            leases: Leases::default(),
            serving: Serving::default(),
            text_dir: std::env::temp_dir().into(),
            placing: Arc::default(),
            validations: crate::validations::Validations::default(),
            wake: Arc::default(),
        };
        let house = Self { memory: Memory::new(&app, Instant::now()).into(), app, provider, seed, api: up };
        house.everybody_could_be_heard().await;
        house
    }

    /// Simulates a scheduler whose passes have succeeded for five minutes.
    async fn everybody_could_be_heard(&self) {
        let mut memory = self.memory.lock().await;
        let now = Instant::now();
        *memory = Memory::new(&self.app, now.checked_sub(Duration::from_secs(300)).unwrap());
        for ago in (0..150).rev() {
            memory.hearing.note(true, now.checked_sub(Duration::from_secs(2 * ago)).unwrap());
        }
    }

    async fn reconcile(&self) {
        assert_eq!(self.unlisted().await, [""; 0]);
    }

    /// Reconciles, and returns the names of the providers that could not list their processes.
    async fn unlisted(&self) -> Vec<String> {
        let unlisted = repair::pass(&self.app, &mut *self.memory.lock().await).await.unwrap();
        unlisted.into_iter().map(|unlisted| unlisted.provider).collect()
    }

    async fn queued(&self) -> JobId {
        queued_job(&mut self.app.pool.acquire().await.unwrap(), self.seed).await.unwrap()
    }

    async fn dispatch(&self, job_id: JobId) {
        DispatchJob { job_id }.handle(self.app.clone()).await.unwrap();
    }

    async fn job(&self, id: JobId) -> job::Job {
        job::load(&mut self.app.pool.acquire().await.unwrap(), id).await.unwrap()
    }

    async fn tell(&self, id: JobId, events: &[RunEvent]) {
        let mut conn = self.app.pool.acquire().await.unwrap();
        let run = run::get(&mut conn, self.job(id).await.run_id.unwrap()).await.unwrap();
        testing::put_blobs(&mut conn, run.run_id).await.unwrap();
        report::take(&mut conn, run.run_id, &testing::report(&run, 0, events)).await.unwrap();
    }

    async fn pass_a_minute(&self) {
        testing::pass_a_minute(&mut self.app.pool.acquire().await.unwrap()).await.unwrap();
    }

    async fn active_nodes(&self) -> usize {
        node::active(&mut self.app.pool.acquire().await.unwrap(), "local").await.unwrap().len()
    }
}

#[sqlx::test(migrations = false)]
async fn a_queued_job_gets_a_node_and_a_trainer_and_the_next_one_waits(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let (first, second) = (house.queued().await, house.queued().await);
    // The message is only a wake-up: the older job goes first.
    house.dispatch(second).await;
    house.dispatch(second).await;
    let (first, second) = (house.job(first).await, house.job(second).await);
    assert_eq!((first.state, second.state), (JobState::Provisioning, JobState::Queued));
    assert_eq!(house.provider.handles(), [first.run_id.unwrap().to_string()]);
    assert_eq!(house.active_nodes().await, 1);
}

#[sqlx::test(migrations = false)]
async fn a_trainer_that_cannot_be_launched_is_tried_three_times(pool: PgPool) {
    let house = House::new(pool, Remembers { refuses: true, ..Remembers::default() }).await;
    let id = house.queued().await;
    for _ in 0..3 {
        house.dispatch(id).await;
        house.dispatch(id).await; // no attempt before the delay is over
        house.pass_a_minute().await;
    }
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempts), (JobState::Failed, 3));
    let error = job.error.unwrap();
    assert!(error.message.contains("starting attune-trainer failed: no such program"), "{}", error.message);
    assert_eq!(house.active_nodes().await, 0);
}

#[sqlx::test(migrations = false)]
async fn lost_messages_are_sent_again(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    new_job(&mut conn, house.seed).await.unwrap();
    house.queued().await;
    replica::ensure(&mut conn, ServedBase::as_imported(house.seed.base_model_id)).await.unwrap();
    testing::lose_messages(&mut conn).await.unwrap();
    house.reconcile().await;
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 0, "they are young");
    house.pass_a_minute().await;
    for _ in 0..2 {
        house.reconcile().await;
    }
    assert_eq!(testing::messages::<ValidateJob>(&mut conn).await.unwrap(), 1);
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 1);
    assert_eq!(testing::messages::<EnsureReplica>(&mut conn).await.unwrap(), 1);
}

#[sqlx::test(migrations = false)]
async fn after_a_restart_the_job_continues_from_its_last_checkpoint(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    house.tell(id, &[started(), checkpointed(20, '1')]).await;
    // All processes ended with the scheduler.
    house.provider.processes.lock().unwrap().clear();
    house.reconcile().await;
    let job = house.job(id).await;
    assert_eq!((job.state, job.run_id, job.barren_attempts), (JobState::Queued, None, 0));
    assert_eq!(house.active_nodes().await, 0);

    house.dispatch(id).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let run = run::get(&mut conn, house.job(id).await.run_id.unwrap()).await.unwrap();
    let newest = checkpoint::newest(&mut conn, id).await.unwrap().unwrap();
    assert_eq!((run.resume_id, run.run_lease), (Some(newest.checkpoint_id), 2));
}

#[sqlx::test(migrations = false)]
async fn a_trainer_that_died_leaves_its_last_words_in_the_jobs_events(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    house.provider.end(&house.provider.handles()[0], "attune-trainer ended (signal: 9)");
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Queued);
    let mut conn = house.app.pool.acquire().await.unwrap();
    let told = attune_store::jobs::job_event::list(&mut conn, house.seed.project_id, id, None, 1).await.unwrap();
    assert_eq!(
        told[0].message,
        "attune-trainer ended (signal: 9); the job is queued again, for another attempt in 5 s"
    );
    assert!(house.provider.handles().is_empty());
}

#[sqlx::test(migrations = false)]
async fn an_unresponsive_trainer_is_ended_and_a_reporting_one_is_not(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    house.pass_a_minute().await;
    house.tell(id, &[started()]).await;
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Running);
    house.pass_a_minute().await;
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Queued);
    assert!(house.provider.handles().is_empty());
}

#[sqlx::test(migrations = false)]
async fn attack_a13_while_the_api_is_away_no_run_is_declared_lost_and_no_attempt_counts(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    house.api.store(false, Ordering::Relaxed);
    house.pass_a_minute().await;
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Provisioning, "nobody could report");
    // A trainer that ends because the API is unavailable is not the job's fault, however often.
    for _ in 0..4 {
        house.provider.end(&house.provider.handles()[0], "attune-trainer ended (exit status: 1)");
        house.reconcile().await;
        let job = house.job(id).await;
        assert_eq!((job.state, job.barren_attempts), (JobState::Queued, 0));
        house.pass_a_minute().await;
        house.dispatch(id).await;
        assert_eq!(house.job(id).await.state, JobState::Provisioning);
    }
    // The API answers again, but the trainer hangs.
    house.api.store(true, Ordering::Relaxed);
    house.pass_a_minute().await;
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Provisioning, "it has a lease to report");
    house.everybody_could_be_heard().await;
    house.reconcile().await;
    let job = house.job(id).await;
    assert_eq!((job.state, job.barren_attempts), (JobState::Queued, 1));
}

#[sqlx::test(migrations = false)]
async fn a_cancel_that_the_trainer_does_not_obey_ends_it(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    house.tell(id, &[started()]).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    job::cancel(&mut conn, house.seed.project_id, id).await.unwrap();
    for expected in [JobState::Cancelling, JobState::Cancelled] {
        house.pass_a_minute().await;
        let run = run::get(&mut conn, house.job(id).await.run_id.unwrap()).await.unwrap();
        report::take(&mut conn, run.run_id, &testing::report(&run, 1, &[])).await.unwrap();
        house.reconcile().await;
        assert_eq!(house.job(id).await.state, expected);
    }
    assert!(house.provider.handles().is_empty());
    assert_eq!(house.active_nodes().await, 0);
}

#[sqlx::test(migrations = false)]
async fn a_job_whose_budget_is_spent_is_not_started_and_continues_when_it_is_raised(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    money::set_budget(&mut conn, house.seed.project_id, Some(0)).await.unwrap();
    house.dispatch(id).await;
    let job = house.job(id).await;
    assert_eq!((job.state, job.pause_reason), (JobState::Paused, Some(PauseReason::Budget)));
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Paused);
    money::set_budget(&mut conn, house.seed.project_id, Some(1)).await.unwrap();
    house.reconcile().await;
    house.dispatch(id).await;
    assert_eq!(house.job(id).await.state, JobState::Provisioning);
}

#[sqlx::test(migrations = false)]
async fn a_process_that_no_row_names_is_stopped_after_a_while(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    house.provider.processes.lock().unwrap().insert("run_x".into(), None);
    house.reconcile().await;
    assert_eq!(house.provider.handles(), ["run_x"], "it may be on its way out");
    for since in house.memory.lock().await.outliving.values_mut() {
        *since -= std::time::Duration::from_secs(11);
    }
    house.reconcile().await;
    assert!(house.provider.handles().is_empty());
}

#[sqlx::test(migrations = false)]
async fn an_idle_replica_is_evicted_for_a_job(pool: PgPool) {
    // Enough for either, not for both: a replica of the tiny model takes at least 483 MiB and the margin.
    let house = House::new(pool, Remembers { memory: Bytes::mib(600), ..Remembers::default() }).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let replica_id =
        replica::ensure(&mut conn, ServedBase::as_imported(house.seed.base_model_id)).await.unwrap().replica_id;
    EnsureReplica { replica_id }.handle(house.app.clone()).await.unwrap();
    assert_eq!(house.provider.handles(), [replica_id.to_string()]);
    let ready = ReplicaReport { address: Some("127.0.0.1:9".into()), ..ReplicaReport::default() };
    replica::take_report(&mut conn, replica_id, &ready).await.unwrap();

    let id = house.queued().await;
    house.dispatch(id).await;
    assert_eq!(house.job(id).await.state, JobState::Queued, "the replica was used a moment ago");
    house.pass_a_minute().await;
    house.dispatch(id).await;
    assert_eq!(replica::get(&mut conn, replica_id).await.unwrap().state, ReplicaState::Ended);
    house.dispatch(id).await;
    assert_eq!(house.job(id).await.state, JobState::Provisioning);
}

#[sqlx::test(migrations = false)]
async fn a_replica_that_died_says_why_and_gives_its_memory_back(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let replica_id =
        replica::ensure(&mut conn, ServedBase::as_imported(house.seed.base_model_id)).await.unwrap().replica_id;
    EnsureReplica { replica_id }.handle(house.app.clone()).await.unwrap();
    house.provider.end(&replica_id.to_string(), "attune-serving ended (exit status: 1)");
    house.reconcile().await;
    let error = testing::replica_error(&mut conn, replica_id).await.unwrap();
    assert_eq!(error.as_deref(), Some("attune-serving ended (exit status: 1)"));
    assert_eq!(house.active_nodes().await, 0);
    assert!(house.provider.handles().is_empty());
}

#[sqlx::test(migrations = false)]
async fn an_orderly_stop_hands_the_jobs_back_and_counts_for_nothing(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    for _ in 0..4 {
        house.dispatch(id).await;
        repair::hand_back(&house.app).await.unwrap();
        assert!(house.provider.handles().is_empty());
    }
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempts, job.barren_attempts), (JobState::Queued, 4, 0));
}
