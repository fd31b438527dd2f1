//! Tests of dispatch and the reconciler with two providers. Their offers have the same name.

use super::*;

struct Two {
    house: House,
    near: Arc<Remembers>,
    far: Arc<Remembers>,
}

/// Creates a platform whose providers, `near` and `far`, have this much memory, in MiB.
async fn two(pool: PgPool, near: u64, far: u64) -> Two {
    let remembers = |name, mib| Arc::new(Remembers { name, memory: Bytes::mib(mib), ..Remembers::default() });
    let (near, far) = (remembers("near", near), remembers("far", far));
    let house = House::with(pool, near.clone(), Providers::new(vec![near.clone(), far.clone()])).await;
    Two { house, near, far }
}

impl Two {
    async fn nodes(&self, provider: &str) -> usize {
        node::active(&mut self.house.app.pool.acquire().await.unwrap(), provider).await.unwrap().len()
    }

    async fn run_of(&self, id: JobId) -> String {
        self.house.job(id).await.run_id.unwrap().to_string()
    }
}

#[sqlx::test(migrations = false)]
async fn a_process_is_launched_at_the_provider_that_offered_the_machine(pool: PgPool) {
    let two = two(pool, 1, 900).await;
    let id = two.house.queued().await;
    two.house.dispatch(id).await;
    assert_eq!(two.far.handles(), [two.run_of(id).await]);
    assert_eq!((two.near.handles().len(), two.nodes("near").await, two.nodes("far").await), (0, 0, 1));
    two.house.reconcile().await;
    assert_eq!(two.house.job(id).await.state, JobState::Provisioning);
    two.far.end(&two.run_of(id).await, "attune-trainer ended (signal: 9)");
    two.house.reconcile().await;
    assert_eq!((two.house.job(id).await.state, two.nodes("far").await), (JobState::Queued, 0));

    let mut conn = two.house.app.pool.acquire().await.unwrap();
    let replica_id =
        replica::ensure(&mut conn, ServedBase::as_imported(two.house.seed.base_model_id)).await.unwrap().replica_id;
    EnsureReplica { replica_id }.handle(two.house.app.clone()).await.unwrap();
    assert_eq!((two.near.handles().len(), two.far.handles()), (0, vec![replica_id.to_string()]));
}

#[sqlx::test(migrations = false)]
async fn a_run_is_compared_with_and_stopped_at_the_provider_of_its_node(pool: PgPool) {
    let two = two(pool, 900, 900).await;
    let (first, second) = (two.house.queued().await, two.house.queued().await);
    two.house.dispatch(first).await;
    let (first_run, second_run) = (two.run_of(first).await, two.run_of(second).await);
    // Of equal offers the first is used; it has one slot.
    assert_eq!((two.near.handles(), two.far.handles()), (vec![first_run.clone()], vec![second_run.clone()]));
    // An ended process of the same name at the other provider is not the run's.
    two.near.end(&second_run, "attune-trainer ended (signal: 9)");
    two.house.reconcile().await;
    assert_eq!((two.near.handles(), two.far.handles()), (vec![first_run.clone()], vec![second_run.clone()]));
    assert_eq!(two.house.job(second).await.state, JobState::Provisioning);

    two.far.end(&second_run, "attune-trainer ended (signal: 9)");
    two.house.reconcile().await;
    let states = (two.house.job(first).await.state, two.house.job(second).await.state);
    assert_eq!(states, (JobState::Provisioning, JobState::Queued));
    assert_eq!((two.near.handles(), two.far.handles().len()), (vec![first_run], 0));
    repair::hand_back(&two.house.app).await.unwrap();
    assert_eq!((two.near.handles().len(), two.nodes("near").await), (0, 0));
}

#[sqlx::test(migrations = false)]
async fn a_provider_that_cannot_list_its_processes_delays_no_other(pool: PgPool) {
    let two = two(pool, 900, 900).await;
    let (first, second) = (two.house.queued().await, two.house.queued().await);
    two.house.dispatch(first).await;
    let (first_run, second_run) = (two.run_of(first).await, two.run_of(second).await);
    // A process without a row: its grace period continues while its provider does not answer.
    two.near.processes.lock().unwrap().insert("run_x".into(), None);
    two.house.reconcile().await;
    let seen = two.house.memory.lock().await.outliving.clone();
    assert_eq!(seen.len(), 1);

    two.near.is_unlisted.store(true, Ordering::Relaxed);
    two.near.end(&first_run, "attune-trainer ended (signal: 9)");
    two.far.end(&second_run, "attune-trainer ended (signal: 9)");
    assert_eq!(two.house.unlisted().await, ["near"]);
    let states = (two.house.job(first).await.state, two.house.job(second).await.state);
    assert_eq!(states, (JobState::Provisioning, JobState::Queued));
    assert_eq!((two.near.handles().len(), two.far.handles().len()), (2, 0));
    assert_eq!(two.house.memory.lock().await.outliving, seen);

    two.near.is_unlisted.store(false, Ordering::Relaxed);
    two.house.reconcile().await;
    assert_eq!(two.house.job(first).await.state, JobState::Queued);
    assert_eq!(two.near.handles(), ["run_x"]);
}

#[sqlx::test(migrations = false)]
async fn a_run_of_a_provider_that_is_not_configured_is_left_alone(pool: PgPool) {
    let mut two = two(pool, 1, 900).await;
    let id = two.house.queued().await;
    two.house.dispatch(id).await;
    two.house.app.providers = Providers::new(vec![two.near.clone()]);
    two.house.pass_a_minute().await;
    for _ in 0..2 {
        two.house.reconcile().await;
        assert_eq!((two.house.job(id).await.state, two.nodes("far").await), (JobState::Provisioning, 1));
        assert_eq!(two.house.memory.lock().await.unconfigured, std::collections::HashSet::from(["far".to_owned()]));
    }
    assert_eq!(two.far.handles(), [two.run_of(id).await]);
}

#[sqlx::test(migrations = false)]
async fn a_replica_of_a_provider_that_is_not_configured_is_left_alone(pool: PgPool) {
    let mut two = two(pool, 1, 900).await;
    let mut conn = two.house.app.pool.acquire().await.unwrap();
    let replica_id =
        replica::ensure(&mut conn, ServedBase::as_imported(two.house.seed.base_model_id)).await.unwrap().replica_id;
    EnsureReplica { replica_id }.handle(two.house.app.clone()).await.unwrap();
    two.house.app.providers = Providers::new(vec![two.near.clone()]);
    two.house.pass_a_minute().await;
    two.house.reconcile().await;
    assert_eq!(replica::get(&mut conn, replica_id).await.unwrap().state, ReplicaState::Launching);
    assert_eq!((two.far.handles(), two.nodes("far").await), (vec![replica_id.to_string()], 1));
}
