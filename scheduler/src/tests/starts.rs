//! Tests of jobs that start at once: their claims share a transaction, and one that fails leaves the others.

use std::sync::atomic::AtomicUsize;

use attune_store::{
    jobs::{
        job_event,
        snapshot::{self, Measures},
    },
    runs::placement,
    testing::rows,
};

use super::*;
use crate::error::Late;

/// A machine with much memory, and this many slots.
fn large(slots: usize) -> Remembers {
    Remembers { memory: Bytes::mib(1 << 20), slots, ..Remembers::default() }
}

/// The launches that a provider refuses.
#[derive(Clone, Copy)]
enum Refused {
    /// The second one, for a reason that is the job's fault.
    Second,
    /// All: it does not answer in time.
    Late,
}

/// A provider that counts its launches and refuses some.
struct Refuses {
    inner: Arc<Remembers>,
    refused: Refused,
    launches: AtomicUsize,
}

impl Refuses {
    async fn house(pool: PgPool, slots: usize, refused: Refused) -> (House, Arc<Self>) {
        let inner = Arc::new(large(slots));
        let provider = Arc::new(Self { inner: inner.clone(), refused, launches: AtomicUsize::new(0) });
        (House::with(pool, inner, Providers::new(vec![provider.clone()])).await, provider)
    }

    fn cause(&self) -> Option<Box<dyn std::error::Error + Send + Sync>> {
        let earlier = self.launches.fetch_add(1, Ordering::Relaxed);
        match self.refused {
            Refused::Second => (earlier == 1).then(|| "no such program".into()),
            Refused::Late => Some(Box::new(Late { seconds: 60 })),
        }
    }
}

impl Provider for Refuses {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        self.inner.offers()
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        match self.cause() {
            None => self.inner.launch(launch),
            Some(cause) => {
                let error = ProviderError { action: "starting attune-trainer".into(), cause };
                Box::pin(async move { Err(error) })
            }
        }
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        self.inner.list()
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        self.inner.stop(handle)
    }
}

impl House {
    async fn queue_up(&self, count: usize) -> Vec<JobId> {
        let mut jobs = Vec::with_capacity(count);
        for _ in 0..count {
            jobs.push(self.queued().await);
        }
        jobs
    }

    /// Returns the states of jobs, also of those whose other columns cannot be read.
    async fn states(&self, jobs: &[JobId]) -> Vec<String> {
        let mut states = Vec::with_capacity(jobs.len());
        for job in jobs {
            let state = rows::of_job(&self.app.pool, "select state from job where job_id = $1", *job);
            states.push(state.await.unwrap());
        }
        states
    }

    /// Stores that waiting jobs need this much memory, in MiB.
    async fn need(&self, jobs: &[JobId], mib: u64) {
        let measures = Measures { need: Bytes::mib(mib), seconds: 100.0, slowness: Vec::new() };
        let measured: Vec<_> = jobs.iter().map(|job| (*job, measures.clone())).collect();
        snapshot::measure(&mut self.app.pool.acquire().await.unwrap(), &measured).await.unwrap();
    }

    async fn sql(&self, statement: &'static str) {
        rows::execute(&self.app.pool, statement).await.unwrap();
    }
}

#[sqlx::test(migrations = false)]
async fn all_jobs_with_room_start_in_one_pass_each_with_a_node_a_handle_and_a_placement(pool: PgPool) {
    // More than one transaction claims.
    let house = House::new(pool, large(60)).await;
    let jobs = house.queue_up(61).await;
    house.dispatch(jobs[0]).await;
    let states = house.states(&jobs).await;
    assert_eq!(states.iter().filter(|state| *state == "provisioning").count(), 60);
    assert_eq!(states[60], "queued", "the oldest go first");
    assert!(house.job(jobs[60]).await.waiting_reason.unwrap().contains("this machine"));
    let mut conn = house.app.pool.acquire().await.unwrap();
    let nodes = node::active(&mut conn, "local").await.unwrap();
    let mut handles: Vec<_> = nodes.iter().map(|node| node.handle.clone().unwrap()).collect();
    handles.sort();
    assert_eq!(handles, house.provider.handles());
    assert!(nodes.iter().all(|node| node.handle == node.run_id.map(|run| run.to_string())));
    for job in [jobs[0], jobs[59]] {
        let last = placement::last(&mut conn, job).await.unwrap().unwrap();
        assert_eq!((last.attempt, last.placed.unwrap().offer.as_str()), (1, "this machine"));
    }
    house.reconcile().await;
    assert_eq!(house.states(&jobs).await, states, "each row has its process");
}

#[sqlx::test(migrations = false)]
async fn a_claim_that_fails_leaves_nothing_of_it_and_the_others(pool: PgPool) {
    let house = House::new(pool, large(3)).await;
    let jobs = house.queue_up(3).await;
    let refused = "update job set suffix = 'refused' where job_id = any($1)";
    rows::change_jobs(&house.app.pool, refused, &jobs[1..2]).await.unwrap();
    house
        .sql(
            "create function refuse() returns trigger language plpgsql as $$ begin
                 if (select suffix from job where job_id = new.job_id) = 'refused' then
                     raise exception 'the test refuses this run';
                 end if;
                 return new;
             end $$;
             create trigger refuse before insert on run for each row execute function refuse()",
        )
        .await;
    house.dispatch(jobs[0]).await;
    assert_eq!(house.states(&jobs).await, ["provisioning", "queued", "provisioning"]);
    assert_eq!((house.active_nodes().await, house.provider.handles().len()), (2, 2));
    let left = house.job(jobs[1]).await;
    assert_eq!((left.attempts, left.run_id), (0, None));
    let mut conn = house.app.pool.acquire().await.unwrap();
    let events = job_event::list(&mut conn, house.seed.project_id, jobs[1], None, 50).await.unwrap();
    assert!(events.iter().all(|event| !event.message.starts_with("Training on")), "{events:?}");

    house.sql("drop trigger refuse on run").await;
    house.dispatch(jobs[1]).await;
    assert_eq!(house.states(&jobs[1..2]).await, ["provisioning"]);
}

#[sqlx::test(migrations = false)]
async fn a_job_whose_row_cannot_be_read_holds_back_no_other(pool: PgPool) {
    let house = House::new(pool, large(3)).await;
    let jobs = house.queue_up(3).await;
    // The first one was measured already; the second one is not.
    house.need(&jobs[..1], 300).await;
    let broken = "update job set spec = '\"?\"' where job_id = any($1)";
    rows::change_jobs(&house.app.pool, broken, &jobs[..2]).await.unwrap();
    house.dispatch(jobs[2]).await;
    assert_eq!(house.states(&jobs).await, ["queued", "queued", "provisioning"]);
}

#[sqlx::test(migrations = false)]
async fn a_launch_that_fails_leaves_the_others(pool: PgPool) {
    let (house, provider) = Refuses::house(pool, 3, Refused::Second).await;
    let jobs = house.queue_up(3).await;
    house.dispatch(jobs[0]).await;
    let mut states = house.states(&jobs).await;
    let lost = jobs[states.iter().position(|state| state == "queued").unwrap()];
    states.sort();
    assert_eq!(states, ["provisioning", "provisioning", "queued"]);
    let job = house.job(lost).await;
    assert_eq!((job.attempts, job.barren_attempts, job.run_id), (1, 1, None));
    let mut conn = house.app.pool.acquire().await.unwrap();
    let nodes = node::active(&mut conn, "local").await.unwrap();
    assert_eq!((nodes.len(), provider.inner.handles().len()), (2, 2), "its node is free");
    assert!(nodes.iter().all(|node| node.handle.is_some()));
    let events = job_event::list(&mut conn, house.seed.project_id, lost, None, 1).await.unwrap();
    let said = "The trainer could not be launched: starting attune-trainer failed: no such program; the job is queued";
    assert!(events[0].message.starts_with(said), "{}", events[0].message);
    house.pass_a_minute().await;
    house.dispatch(lost).await;
    assert_eq!(house.states(&[lost]).await, ["provisioning"]);
}

#[sqlx::test(migrations = false)]
async fn a_provider_that_does_not_answer_to_a_launch_is_not_waited_for_again_in_the_same_pass(pool: PgPool) {
    let (house, provider) = Refuses::house(pool, 20, Refused::Late).await;
    let jobs = house.queue_up(20).await;
    house.dispatch(jobs[0]).await;
    assert_eq!(provider.launches.load(Ordering::Relaxed), 1, "the error came at once");
    assert!(house.states(&jobs).await.iter().all(|state| state == "queued"));
    assert_eq!((house.active_nodes().await, house.job(jobs[19]).await.barren_attempts), (0, 0));
}

#[sqlx::test(migrations = false)]
async fn a_job_that_pauses_for_lack_of_money_leaves_its_place_to_the_next(pool: PgPool) {
    let house = House::new(pool, large(2)).await;
    let jobs = house.queue_up(3).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    money::set_price_cap(&mut conn, house.seed.project_id, jobs[1], Some(1)).await.unwrap();
    let spent = "update job set micro_usd = 1 where job_id = any($1)";
    rows::change_jobs(&house.app.pool, spent, &jobs[1..2]).await.unwrap();
    house.dispatch(jobs[0]).await;
    assert_eq!(house.states(&jobs).await, ["provisioning", "paused", "provisioning"]);
    assert_eq!(house.job(jobs[1]).await.pause_reason, Some(PauseReason::PriceCap));
    assert_eq!(house.provider.handles().len(), 2);
}

#[sqlx::test(migrations = false)]
async fn a_job_without_room_is_measured_again_and_leaves_the_others(pool: PgPool) {
    let near = Arc::new(Remembers { memory: Bytes::mib(1), ..Remembers::default() });
    let far = Arc::new(Remembers { name: "far", ..Remembers::default() });
    let house = House::with(pool, near.clone(), Providers::new(vec![near, far.clone()])).await;
    let jobs = house.queue_up(2).await;
    // The plan of the queue starts it on the small machine.
    house.need(&jobs[1..], 1).await;
    house.dispatch(jobs[0]).await;
    assert_eq!(house.states(&jobs).await, ["provisioning", "queued"]);
    let first = house.job(jobs[0]).await.run_id.unwrap().to_string();
    assert_eq!((far.handles(), house.provider.handles().len()), (vec![first], 0));
    let need = "select need_bytes::text from job where job_id = $1";
    let need: u64 = rows::of_job(&house.app.pool, need, jobs[1]).await.unwrap().parse().unwrap();
    assert!(need > 1 << 20, "{need}");
    assert!(house.job(jobs[1]).await.waiting_reason.is_some());
}
