//! Tests of the queue: fair share, backfill, preemption, limits of projects, and the places of waiting jobs.

use attune_domain::job::Priority;
use attune_store::{
    jobs::{
        job_event,
        snapshot::{self, Measures},
    },
    runs::placement,
    tenancy::project_queue::{self, Settings},
    testing::{neighbor, published, rank},
};

use super::*;

/// A machine with this much memory, in MiB, and this many slots.
fn machine(mib: u64, slots: usize) -> Remembers {
    Remembers { memory: Bytes::mib(mib), slots, ..Remembers::default() }
}

impl House {
    async fn queued_by(&self, seed: Seed) -> JobId {
        queued_job(&mut self.app.pool.acquire().await.unwrap(), seed).await.unwrap()
    }

    async fn neighbor(&self, name: &str) -> Seed {
        neighbor(&mut self.app.pool.acquire().await.unwrap(), self.seed, name).await.unwrap()
    }

    /// Sets the measures of a waiting job.
    async fn measure(&self, id: JobId, mib: u64, seconds: f64) {
        let measures = Measures { need: Bytes::mib(mib), seconds, slowness: Vec::new() };
        snapshot::measure(&mut self.app.pool.acquire().await.unwrap(), &[(id, measures)]).await.unwrap();
    }

    async fn rank(&self, id: JobId, priority: Priority, preemptible: bool) {
        rank(&mut self.app.pool.acquire().await.unwrap(), id, priority, preemptible).await.unwrap();
    }

    async fn state(&self, id: JobId) -> JobState {
        self.job(id).await.state
    }

    /// Lets the trainer of a job publish its adapter.
    async fn finish(&self, id: JobId) {
        self.tell(id, &[started(), published()]).await;
        assert_eq!(self.state(id).await, JobState::Succeeded);
    }
}

#[sqlx::test(migrations = false)]
async fn a_flood_of_one_project_does_not_hold_back_anothers_job(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let other = house.neighbor("other").await;
    let mut flood = Vec::new();
    for _ in 0..5 {
        flood.push(house.queued().await);
    }
    let light = house.queued_by(other).await;
    house.dispatch(light).await;
    assert_eq!(house.state(flood[0]).await, JobState::Provisioning, "the oldest goes first");
    let waiting = house.job(light).await;
    assert_eq!((waiting.state, waiting.queue_position), (JobState::Queued, Some(1)));
    assert!(waiting.waiting_reason.is_some() && waiting.estimated_start.is_some(), "{waiting:?}");
    let last = house.job(flood[4]).await;
    assert_eq!(last.queue_position, Some(5));
    assert!(last.estimated_start > waiting.estimated_start);

    house.finish(flood[0]).await;
    house.dispatch(flood[1]).await;
    assert_eq!((house.state(light).await, house.state(flood[1]).await), (JobState::Provisioning, JobState::Queued));
    assert_eq!(house.job(light).await.queue_position, None);
    let mut conn = house.app.pool.acquire().await.unwrap();
    let placed = placement::last(&mut conn, light).await.unwrap().unwrap().placed.unwrap();
    assert_eq!((placed.offer.as_str(), placed.others.len()), ("this machine", 0));
    assert!(placed.estimate.peak > Bytes(0) && !placed.estimate.terms.is_empty());
}

#[sqlx::test(migrations = false)]
async fn a_small_job_passes_a_large_one_only_if_it_does_not_delay_it(pool: PgPool) {
    let house = House::new(pool, machine(4000, 4)).await;
    let running = house.queued().await;
    house.measure(running, 300, 1000.0).await;
    house.dispatch(running).await;
    // The large one has to wait for the end of the running one; then it leaves 10 MiB.
    let (large, long, short) = (house.queued().await, house.queued().await, house.queued().await);
    house.measure(large, 3990, 100.0).await;
    house.measure(long, 300, 5000.0).await;
    house.measure(short, 300, 100.0).await;
    house.dispatch(large).await;
    let states = [house.state(large).await, house.state(long).await, house.state(short).await];
    assert_eq!(states, [JobState::Queued, JobState::Queued, JobState::Provisioning]);
    assert_eq!(house.job(large).await.queue_position, Some(1));

    house.finish(short).await;
    house.finish(running).await;
    house.dispatch(large).await;
    assert_eq!(house.state(large).await, JobState::Provisioning, "it was not delayed");
}

#[sqlx::test(migrations = false)]
async fn a_preemptible_job_is_stopped_at_a_checkpoint_queued_again_and_ends(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let (background, steady) = (house.queued().await, house.queued().await);
    house.rank(background, Priority::Low, true).await;
    house.measure(background, 300, 5000.0).await;
    house.rank(steady, Priority::Low, true).await;
    house.dispatch(background).await;
    house.tell(background, &[started()]).await;
    assert_eq!((house.state(background).await, house.state(steady).await), (JobState::Running, JobState::Queued));

    let urgent = house.queued().await;
    house.dispatch(urgent).await;
    let stopping = house.job(background).await;
    assert_eq!((stopping.state, stopping.pause_reason), (JobState::Pausing, Some(PauseReason::Preempted)));
    house.dispatch(urgent).await;
    assert_eq!(house.state(urgent).await, JobState::Queued, "the machine is not free yet");
    house.tell(background, &[started(), checkpointed(20, '1'), RunEvent::Stopped { step: 20 }]).await;
    assert_eq!(house.state(background).await, JobState::Queued);

    house.dispatch(urgent).await;
    assert_eq!((house.state(urgent).await, house.state(background).await), (JobState::Provisioning, JobState::Queued));
    house.finish(urgent).await;
    house.dispatch(background).await;
    assert_eq!((house.state(background).await, house.state(steady).await), (JobState::Provisioning, JobState::Queued));
    let mut conn = house.app.pool.acquire().await.unwrap();
    let run = run::get(&mut conn, house.job(background).await.run_id.unwrap()).await.unwrap();
    assert!(run.resume_id.is_some(), "it continues from its checkpoint");
    house.finish(background).await;
    let events = job_event::list(&mut conn, house.seed.project_id, background, None, 50).await.unwrap();
    let preempted = events.iter().filter(|event| event.message.starts_with("Preempted: ")).collect::<Vec<_>>();
    assert_eq!(preempted.len(), 1);
    assert!(preempted[0].message.contains("normal priority") && !preempted[0].message.contains(&urgent.to_string()));
}

#[sqlx::test(migrations = false)]
async fn a_project_runs_no_more_jobs_than_it_may(pool: PgPool) {
    let house = House::new(pool, machine(4000, 4)).await;
    let other = house.neighbor("other").await;
    let limited = Settings { max_running_jobs: Some(1), ..Settings::default() };
    let mut conn = house.app.pool.acquire().await.unwrap();
    project_queue::set(&mut conn, house.seed.project_id, limited).await.unwrap();
    let (first, second, theirs) = (house.queued().await, house.queued().await, house.queued_by(other).await);
    house.dispatch(first).await;
    let states = [house.state(first).await, house.state(second).await, house.state(theirs).await];
    assert_eq!(states, [JobState::Provisioning, JobState::Queued, JobState::Provisioning]);
    let reason = house.job(second).await.waiting_reason.unwrap();
    assert!(reason.contains("at most 1"), "{reason}");
    house.finish(first).await;
    house.dispatch(second).await;
    assert_eq!(house.state(second).await, JobState::Provisioning);
}

#[sqlx::test(migrations = false)]
async fn a_project_that_has_used_its_node_hours_waits_for_the_next_month_and_is_not_stopped(pool: PgPool) {
    let house = House::new(pool, machine(4000, 4)).await;
    let other = house.neighbor("other").await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let limited = Settings { max_node_hours: Some(0.0001), ..Settings::default() };
    project_queue::set(&mut conn, house.seed.project_id, limited).await.unwrap();
    let (first, second, theirs) = (house.queued().await, house.queued().await, house.queued_by(other).await);
    house.dispatch(first).await;
    // The first job is expected to use the whole of it.
    let states = [house.state(first).await, house.state(second).await, house.state(theirs).await];
    assert_eq!(states, [JobState::Provisioning, JobState::Queued, JobState::Provisioning]);
    testing::age_nodes(&mut conn).await.unwrap();
    house.dispatch(second).await;
    assert_eq!(house.state(first).await, JobState::Provisioning, "what runs is not stopped");
    house.finish(first).await;
    house.dispatch(second).await;
    let job = house.job(second).await;
    let reason = job.waiting_reason.unwrap();
    assert_eq!(job.state, JobState::Queued);
    assert!(reason.contains("of its 0.00 node-hours of this month"), "{reason}");
    let used = project_queue::used(&mut conn, house.seed.project_id).await.unwrap();
    assert!(job.estimated_start.is_some_and(|start| start >= used.next_month), "{:?}", job.estimated_start);
    project_queue::set(&mut conn, house.seed.project_id, Settings::default()).await.unwrap();
    house.dispatch(second).await;
    assert_eq!(house.state(second).await, JobState::Provisioning);
}

#[sqlx::test(migrations = false)]
async fn a_job_that_no_machine_can_hold_fails_and_one_with_a_stale_measure_does_not(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    house.measure(id, 1 << 20, 100.0).await;
    house.dispatch(id).await;
    assert_eq!(house.state(id).await, JobState::Provisioning);

    let small = Arc::new(machine(1, 1));
    let mut app = house.app.clone();
    app.providers = Providers::new(vec![small]);
    let id = house.queued().await;
    DispatchJob { job_id: id }.handle(app).await.unwrap();
    let job = house.job(id).await;
    assert_eq!((job.state, job.error.unwrap().code.as_str()), (JobState::Failed, "insufficient_memory"));
}
