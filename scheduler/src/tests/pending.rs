//! Tests of a provider whose processes wait before they start, and outlive the scheduler.

use attune_domain::run::process::{EndCause, WaitKind};
use attune_store::{
    jobs::job_event,
    runs::pending::{self, MOST_EVENTS},
};

use super::*;
use crate::providers::provider::Wait;

/// A provider with a queue, and with the processes of `inner`.
struct Cluster {
    inner: Arc<Remembers>,
    /// The reason for which all processes wait.
    waits: Mutex<Option<Wait>>,
    /// The processes that ended, and that it lists no more.
    record: Mutex<Vec<Process>>,
}

impl Provider for Cluster {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn outlives_scheduler(&self) -> bool {
        true
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        self.inner.offers()
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        self.inner.launch(launch)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        Box::pin(async {
            let pending = self.waits.lock().unwrap().clone();
            let listed = self.inner.list().await?.into_iter();
            Ok(listed.map(|process| Process { pending: pending.clone(), ..process }).collect())
        })
    }

    fn recorded(&self, handles: Vec<String>) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        let record = self.record.lock().unwrap().clone().into_iter();
        let wanted = record.filter(|process| handles.contains(&process.handle)).collect();
        Box::pin(async { Ok(wanted) })
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        self.inner.stop(handle)
    }
}

fn resources() -> Wait {
    Wait::new(WaitKind::Unschedulable, "the resources are in use")
}

async fn cluster(pool: PgPool, waits: Wait) -> (House, Arc<Cluster>) {
    let inner = Arc::new(Remembers::default());
    let cluster = Arc::new(Cluster { inner: inner.clone(), waits: Mutex::new(Some(waits)), record: Mutex::default() });
    (House::with(pool, inner, Providers::new(vec![cluster.clone()])).await, cluster)
}

impl House {
    /// Returns the messages of the job's events with this code, newest first.
    async fn events(&self, id: JobId, code: &str) -> Vec<String> {
        let mut conn = self.app.pool.acquire().await.unwrap();
        let events = job_event::list(&mut conn, self.seed.project_id, id, None, 100).await.unwrap().into_iter();
        let with_code = events.filter(|event| event.data.as_ref().is_some_and(|data| data["code"] == code));
        with_code.map(|event| event.message).collect()
    }
}

#[sqlx::test(migrations = false)]
async fn a_run_that_waits_at_its_provider_is_not_lost_and_its_job_shows_the_reason(pool: PgPool) {
    let (house, cluster) = cluster(pool, resources()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    for _ in 0..3 {
        house.pass_a_minute().await;
        house.reconcile().await;
    }
    *cluster.waits.lock().unwrap() = Some(Wait::new(WaitKind::Unschedulable, "0/3 nodes are available"));
    house.reconcile().await;
    *cluster.waits.lock().unwrap() = Some(Wait::new(WaitKind::Queued, "other jobs are ahead"));
    house.reconcile().await;
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempts), (JobState::Provisioning, 1));
    assert_eq!(job.waiting_reason.as_deref(), Some("other jobs are ahead"));
    let events = house.events(id, pending::PROVIDER_PENDING).await;
    assert_eq!(events, ["other jobs are ahead", "the resources are in use"], "one event for each kind");

    // It starts: its lease begins now.
    *cluster.waits.lock().unwrap() = None;
    house.reconcile().await;
    let job = house.job(id).await;
    assert_eq!((job.state, job.waiting_reason), (JobState::Provisioning, None));
    house.pass_a_minute().await;
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Queued);
}

#[sqlx::test(migrations = false)]
async fn the_time_that_a_run_waits_at_its_provider_is_not_charged(pool: PgPool) {
    let (house, _cluster) = cluster(pool, resources()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    testing::age_nodes(&mut conn).await.unwrap();
    house.reconcile().await;
    job::cancel(&mut conn, house.seed.project_id, id).await.unwrap();
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Cancelled, "a trainer that has not started cannot obey");
    assert!(house.provider.handles().is_empty());
    let charged = house.job(id).await.node_ms;
    assert!(charged < 60_000, "{charged} ms");
}

#[sqlx::test(migrations = false)]
async fn a_process_that_outlives_the_scheduler_is_adopted_and_its_providers_failures_are_not_the_jobs(pool: PgPool) {
    let (house, cluster) = cluster(pool, resources()).await;
    *cluster.waits.lock().unwrap() = None;
    let id = house.queued().await;
    house.dispatch(id).await;
    repair::hand_back(&house.app).await.unwrap();
    house.reconcile().await;
    assert_eq!((house.job(id).await.state, house.provider.handles().len()), (JobState::Provisioning, 1));

    house.provider.end_with(&house.provider.handles()[0], Ended::new(EndCause::NodeFailed, "its node failed"));
    house.reconcile().await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let events = job_event::list(&mut conn, house.seed.project_id, id, None, 100).await.unwrap();
    let lost = events.iter().filter_map(|event| event.data.as_ref()).find(|data| data["code"] == "run_lost").unwrap();
    assert_eq!(lost["reason"], "node_failed");
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempts, job.barren_attempts), (JobState::Queued, 1, 0));
}

#[sqlx::test(migrations = false)]
async fn limit_a_run_whose_reasons_alternate_has_a_bounded_number_of_events(pool: PgPool) {
    let (house, cluster) = cluster(pool, resources()).await;
    let id = house.queued().await;
    house.dispatch(id).await;
    for at in 0..MOST_EVENTS + 4 {
        let kind = if at % 2 == 0 { WaitKind::Queued } else { WaitKind::ImagePull };
        *cluster.waits.lock().unwrap() = Some(Wait::new(kind, format!("reason {at}")));
        house.reconcile().await;
    }
    assert_eq!(house.events(id, pending::PROVIDER_PENDING).await.len() as i64, MOST_EVENTS);
    let said = format!("reason {}", MOST_EVENTS + 3);
    assert_eq!(house.job(id).await.waiting_reason, Some(said), "the job has the latest reason");
}

/// A cluster that does not list an ended run any more, but has a record of it.
#[sqlx::test(migrations = false)]
async fn the_end_of_a_run_that_is_listed_no_more_is_read_from_the_record_of_its_provider(pool: PgPool) {
    let (house, cluster) = cluster(pool, resources()).await;
    *cluster.waits.lock().unwrap() = None;
    let id = house.queued().await;
    house.dispatch(id).await;
    let handle = house.provider.handles()[0].clone();
    house.provider.stop(&handle).await.unwrap();
    let ended = Ended::new(EndCause::Program, "the Slurm job ended (exit status: 3)");
    *cluster.record.lock().unwrap() = vec![Process { handle, pending: None, ended: Some(ended) }];
    house.reconcile().await;
    assert_eq!(house.job(id).await.state, JobState::Queued);
    let mut conn = house.app.pool.acquire().await.unwrap();
    let events = job_event::list(&mut conn, house.seed.project_id, id, None, 100).await.unwrap();
    assert!(events.iter().any(|event| event.message.contains("(exit status: 3)")), "{events:?}");
}
