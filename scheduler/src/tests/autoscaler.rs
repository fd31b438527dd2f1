//! Passes of the autoscaler: the minimum, a sudden load, and the end of an idle pool.

use std::time::Duration;

use attune_domain::{
    bytes::Bytes,
    id::{DeploymentId, ReplicaId},
    offer::ReplicaKind,
    serve::ReplicaReport,
};
use attune_store::{
    db,
    pools::{
        deployment::{self, Bounds},
        pool_load,
    },
    queue::EnsureReplica,
    replica::{self, ReplicaState, ServedBase},
    testing::{self, rows},
};
use sqlx::PgPool;

use super::{House, Remembers};
use crate::{
    autoscaler::{pass, samples::Autoscaler},
    tasks::Handle,
};

/// A platform with a deployment of its base, and the autoscaler after this many passes.
struct Pools {
    house: House,
    autoscaler: Autoscaler,
    passes: u64,
    /// The pool that the methods concern: the shared one, or that of the deployment.
    base: ServedBase,
}

/// Returns the bounds of exactly this many replicas.
fn bounds(replicas: u32) -> Bounds {
    Bounds {
        name: "d".into(),
        min_replicas: replicas,
        max_replicas: replicas,
        target_concurrency: None,
        cooldown_seconds: None,
        pinned_adapters: Vec::new(),
    }
}

impl Pools {
    async fn new(pool: PgPool) -> Self {
        let house = House::new(pool, Remembers { memory: Bytes::mib(64_000), ..Remembers::default() }).await;
        let base = ServedBase::as_imported(house.seed.base_model_id);
        Self { house, autoscaler: Autoscaler::default(), passes: 0, base }
    }

    /// Creates a deployment, whose pool the methods concern from then on.
    async fn deploy(&mut self, bounds: &Bounds) -> DeploymentId {
        let project = self.house.seed.project_id;
        let mut tx = db::tenant(&self.house.app.pool, project).await.unwrap();
        let made =
            deployment::insert(&mut tx, project, self.base, ReplicaKind::default(), bounds).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        self.base = made.base;
        made.deployment_id
    }

    /// Runs a pass a second after the last one.
    async fn pass(&mut self) {
        pass::pass(&self.house.app, &mut self.autoscaler, Duration::from_secs(self.passes)).await.unwrap();
        self.passes += 1;
    }

    async fn live(&self) -> Vec<ReplicaId> {
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        let live = replica::of_pool(&mut conn, self.base).await.unwrap();
        live.iter().map(|replica| replica.replica_id).collect()
    }

    /// Launches all wanted replicas, and lets them be ready.
    async fn launch(&self) {
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        for replica_id in self.live().await {
            EnsureReplica { replica_id }.handle(self.house.app.clone()).await.unwrap();
            let address = Some("127.0.0.1:9".into());
            let ready = ReplicaReport { address, ..ReplicaReport::default() };
            replica::take_report(&mut conn, replica_id, &ready).await.unwrap();
        }
    }

    async fn load(&self, requests: f64) {
        let mut conn = self.house.app.pool.acquire().await.unwrap();
        pool_load::write(&mut conn, uuid::Uuid::from_u128(1), &[(self.base, requests)]).await.unwrap();
    }
}

#[sqlx::test(migrations = false)]
async fn a_pool_follows_its_deployment_and_its_load(pool: PgPool) {
    let mut pools = Pools::new(pool).await;
    let project = pools.house.seed.project_id;
    pools.pass().await;
    assert_eq!(pools.live().await, []);

    let bounds = Bounds { max_replicas: 3, target_concurrency: Some(1), ..bounds(2) };
    let made = pools.deploy(&bounds).await;
    pools.pass().await;
    pools.launch().await;
    let minimum = pools.live().await;
    assert_eq!((minimum.len(), pools.house.provider.handles().len()), (2, 2));

    pools.load(20.0).await;
    for _ in 0..4 {
        pools.pass().await;
    }
    assert_eq!(pools.live().await.len(), 3, "the maximum");
    pools.launch().await;
    pools.load(0.0).await;

    // Without requests, the minimum stays; without the deployment, the replicas complete their requests.
    let mut conn = pools.house.app.pool.acquire().await.unwrap();
    for _ in 0..16 {
        testing::pass_a_minute(&mut conn).await.unwrap();
    }
    pools.pass().await;
    assert_eq!(pools.live().await.len(), 2);
    pools.load(1.0).await;
    let mut tx = db::tenant(&pools.house.app.pool, project).await.unwrap();
    deployment::delete(&mut tx, project, made).await.unwrap();
    tx.commit().await.unwrap();
    pools.pass().await;
    assert_eq!(pools.live().await, []);
    for id in minimum {
        assert_eq!(replica::get(&mut conn, id).await.unwrap().state, ReplicaState::Draining);
    }
}

#[sqlx::test(migrations = false)]
async fn replicas_that_still_load_the_base_end_with_their_deployment(pool: PgPool) {
    let mut pools = Pools::new(pool).await;
    let project = pools.house.seed.project_id;
    let made = pools.deploy(&bounds(2)).await;
    pools.pass().await;
    let [launching, wanted] = pools.live().await[..] else { panic!("not two replicas") };
    EnsureReplica { replica_id: launching }.handle(pools.house.app.clone()).await.unwrap();
    let mut tx = db::tenant(&pools.house.app.pool, project).await.unwrap();
    deployment::delete(&mut tx, project, made).await.unwrap();
    tx.commit().await.unwrap();
    pools.pass().await;
    let mut conn = pools.house.app.pool.acquire().await.unwrap();
    for id in [launching, wanted] {
        let ended = replica::get(&mut conn, id).await.unwrap();
        assert_eq!((ended.state, ended.error), (ReplicaState::Ended, None));
    }
}

#[sqlx::test(migrations = false)]
async fn a_deployment_enlarges_no_pool_but_its_own(pool: PgPool) {
    let mut pools = Pools::new(pool).await;
    let shared = pools.base;
    pools.deploy(&Bounds { min_replicas: 0, target_concurrency: Some(1), ..bounds(32) }).await;
    pools.base = shared;
    let mut conn = pools.house.app.pool.acquire().await.unwrap();
    replica::ensure(&mut conn, shared).await.unwrap();
    pools.launch().await;
    pools.load(50.0).await;
    for _ in 0..8 {
        pools.pass().await;
    }
    assert_eq!(pools.live().await.len(), 1, "the installation's maximum");
}

#[sqlx::test(migrations = false)]
async fn a_smaller_pool_keeps_its_ready_replica_while_the_others_load(pool: PgPool) {
    let mut pools = Pools::new(pool).await;
    let project = pools.house.seed.project_id;
    let made = pools.deploy(&bounds(1)).await;
    pools.pass().await;
    pools.launch().await;
    let first = pools.live().await;
    for (replicas, live) in [(3, 3), (1, 3)] {
        let mut tx = db::tenant(&pools.house.app.pool, project).await.unwrap();
        let kind = ReplicaKind::default();
        deployment::update(&mut tx, project, made, kind, &bounds(replicas)).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        pools.pass().await;
        assert_eq!(pools.live().await.len(), live);
        for replica_id in pools.live().await {
            EnsureReplica { replica_id }.handle(pools.house.app.clone()).await.unwrap();
        }
    }
    pools.launch().await;
    pools.pass().await;
    assert_eq!(pools.live().await, first);
}

#[sqlx::test(migrations = false)]
async fn a_replica_that_waits_for_a_machine_ends_with_its_idle_pool(pool: PgPool) {
    let mut pools = Pools::new(pool).await;
    let mut conn = pools.house.app.pool.acquire().await.unwrap();
    replica::ensure(&mut conn, pools.base).await.unwrap();
    pools.pass().await;
    assert_eq!(pools.live().await.len(), 1, "the cooldown has not passed");
    for _ in 0..16 {
        testing::pass_a_minute(&mut conn).await.unwrap();
    }
    pools.pass().await;
    assert_eq!(pools.live().await, []);
}

#[sqlx::test(migrations = false)]
async fn a_replica_that_fails_is_not_started_again_at_once(pool: PgPool) {
    let mut pools = Pools::new(pool).await;
    pools.deploy(&bounds(1)).await;
    pools.pass().await;
    let [first] = pools.live().await[..] else { panic!("not one replica") };
    let mut conn = pools.house.app.pool.acquire().await.unwrap();
    replica::end(&mut conn, first, Some("no memory")).await.unwrap();
    pools.pass().await;
    assert_eq!(pools.live().await, [], "it failed a moment ago");
    let ended = "update replica set ended_at = ended_at - interval '6 seconds'";
    rows::execute(&pools.house.app.pool, ended).await.unwrap();
    pools.pass().await;
    let [second] = pools.live().await[..] else { panic!("not one replica") };
    assert_eq!(replica::get(&mut conn, second).await.unwrap().state, ReplicaState::Wanted);
}
