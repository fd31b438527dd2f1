//! Deployments: their pools, and the charges of their replicas.

use attune_domain::{
    id::ProjectId,
    offer::{ReplicaDevice, ReplicaKind},
    serve::{Engine, KvCacheDtype},
    spec::Quantization,
};
use sqlx::{PgConnection, PgPool};

use crate::{
    adapters::base_model::{self, NewBaseModel, Uses},
    db,
    error::StoreError,
    pools::{
        deployment::{self, Bounds, Deployment, POOL_KEY, PoolReplicas},
        deployment_quota::{Exceeded, MOST_REPLICAS_OF_PROJECT},
        deployment_use, pool_load,
        pool_state::{self, PoolDefaults, PoolState},
    },
    replica::{self, ReplicaState, ServedBase},
    runs::node,
    tenancy::{
        money,
        project_queue::{self, Settings},
        tenant,
    },
    testing::{self, Seed, replicas, rows, seed},
};

const DEFAULTS: PoolDefaults = PoolDefaults { max_replicas: 1, target_concurrency: 8, cooldown_seconds: 900 };

pub(super) fn bounds(min_replicas: u32, max_replicas: u32) -> Bounds {
    Bounds {
        name: "d".into(),
        min_replicas,
        max_replicas,
        target_concurrency: None,
        cooldown_seconds: None,
        pinned_adapters: Vec::new(),
    }
}

pub(super) async fn deploy(pool: &PgPool, project: ProjectId, base: ServedBase, bounds: &Bounds) -> Deployment {
    let mut tx = db::tenant(pool, project).await.unwrap();
    let made = deployment::insert(&mut tx, project, base, ReplicaKind::default(), bounds).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    made
}

/// Changes the bounds of a deployment.
async fn change(pool: &PgPool, project: ProjectId, of: &Deployment, kind: ReplicaKind, bounds: &Bounds) -> Deployment {
    let mut tx = db::tenant(pool, project).await.unwrap();
    let changed = deployment::update(&mut tx, project, of.deployment_id, kind, bounds).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    changed
}

/// Starts a ready replica whose node costs a dollar an hour.
pub(super) async fn ready(conn: &mut PgConnection, base: ServedBase) {
    let id = replica::start(conn, base, None).await.unwrap();
    replicas::ready(conn, id, "127.0.0.1:9", 1_000_000).await.unwrap();
}

async fn state(conn: &mut PgConnection) -> Vec<PoolState> {
    pool_state::all(conn, DEFAULTS).await.unwrap()
}

pub(super) async fn two_projects(pool: &PgPool) -> (Seed, ProjectId, ServedBase) {
    let seed = seed(pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    (seed, other, ServedBase::as_imported(seed.base_model_id))
}

#[sqlx::test(migrations = false)]
async fn a_deployment_has_replicas_of_its_own_and_changes_no_other_pool(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    assert_eq!(state(&mut conn).await, [], "no replica, no deployment");
    ready(&mut conn, base).await;
    let large = Bounds { target_concurrency: Some(1), cooldown_seconds: Some(3600), ..bounds(1, 32) };
    let made = deploy(&pool, seed.project_id, base, &large).await;
    assert_eq!(made.base, ServedBase { deployment_id: Some(made.deployment_id), ..base });
    ready(&mut conn, made.base).await;
    let process = uuid::Uuid::from_u128(1);
    for (pool, requests) in [(base, 1.0), (base, 2.5), (made.base, 40.0)] {
        pool_load::write(&mut conn, process, &[(pool, requests)]).await.unwrap();
    }
    pool_load::write(&mut conn, uuid::Uuid::from_u128(2), &[(base, 4.0)]).await.unwrap();

    let pools = state(&mut conn).await;
    let of = |base: ServedBase| pools.iter().find(|pool| pool.base == base).unwrap();
    assert_eq!(pools.len(), 2);
    let own = of(made.base);
    assert_eq!((own.min_replicas, own.max_replicas, own.target_concurrency, own.cooldown_seconds), (1, 32, 1, 3600));
    assert_eq!((own.replicas, own.ready, own.requests, own.project), (1, 1, 40.0, Some(seed.project_id)));
    let shared = of(base);
    let found = (shared.min_replicas, shared.max_replicas, shared.target_concurrency, shared.cooldown_seconds);
    assert_eq!(found, (0, 1, 8, 900), "the installation's");
    assert_eq!((shared.replicas, shared.requests, shared.project), (1, 6.5, None));

    let pool_of = async |project: ProjectId, quantization: Quantization| {
        let mut tx = db::tenant(&pool, project).await.unwrap();
        deployment::pool_of(&mut tx, project, base.base_model_id, quantization).await.unwrap()
    };
    assert_eq!(pool_of(seed.project_id, Quantization::None).await, made.base);
    assert_eq!(pool_of(other, Quantization::None).await, base);
    assert_eq!(pool_of(seed.project_id, Quantization::Int8).await.deployment_id, None, "another quantization");

    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let shown = deployment::get(&mut tx, seed.project_id, made.deployment_id).await.unwrap();
    assert_eq!(shown.replicas, PoolReplicas { starting: 0, ready: 1, draining: 0 });
    tx.commit().await.unwrap();
    let fewer = change(&pool, seed.project_id, &made, made.kind, &bounds(0, 9)).await;
    assert_eq!(fewer.bounds, bounds(0, 9));
}

#[sqlx::test(migrations = false)]
async fn a_deleted_deployment_has_no_replicas_any_more(pool: PgPool) {
    let (seed, _, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let made = deploy(&pool, seed.project_id, base, &bounds(1, 4)).await;
    ready(&mut conn, made.base).await;
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    deployment::delete(&mut tx, seed.project_id, made.deployment_id).await.unwrap();
    tx.commit().await.unwrap();
    let [left] = &state(&mut conn).await[..] else { panic!("not one pool") };
    assert_eq!((left.base, left.min_replicas, left.max_replicas, left.ready), (made.base, 0, 0, 1));
    let started = replica::start(&mut conn, made.base, None).await;
    assert!(matches!(started, Err(StoreError::NotFound("deployment"))), "{started:?}");
}

#[sqlx::test(migrations = false)]
async fn limit_the_deployments_of_a_project_have_at_most_the_replicas_of_its_quota(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let int8 = ServedBase::shared(base.base_model_id, Quantization::Int8);
    let half = MOST_REPLICAS_OF_PROJECT / 2;
    let first = deploy(&pool, seed.project_id, base, &bounds(0, half)).await;
    let insert = async |bounds: &Bounds| {
        let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
        deployment::insert(&mut tx, seed.project_id, int8, ReplicaKind::default(), bounds).await.unwrap()
    };
    let exceeded = Err(Exceeded::Replicas { most: MOST_REPLICAS_OF_PROJECT });
    assert_eq!(insert(&bounds(0, half + 1)).await, exceeded);
    assert!(insert(&bounds(0, half)).await.is_ok());
    deploy(&pool, other, base, &bounds(0, MOST_REPLICAS_OF_PROJECT)).await; // each project has its own quota

    let mut conn = pool.acquire().await.unwrap();
    let settings = Settings { max_replicas: Some(4), ..Settings::default() };
    project_queue::set(&mut conn, seed.project_id, settings).await.unwrap();
    drop(conn);
    assert_eq!(insert(&bounds(0, 1)).await, Err(Exceeded::Replicas { most: 4 }));
    let update = async |most: u32| {
        let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
        let bounds = bounds(0, most);
        deployment::update(&mut tx, seed.project_id, first.deployment_id, first.kind, &bounds).await.unwrap()
    };
    assert_eq!(update(half + 1).await, Err(Exceeded::Replicas { most: 4 }));
    assert!(update(half - 1).await.is_ok(), "a lower number is always possible");
}

#[sqlx::test(migrations = false)]
async fn a_project_has_one_deployment_of_a_pool_and_sees_no_other_projects(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let made = deploy(&pool, seed.project_id, base, &bounds(0, 2)).await;
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let again =
        deployment::insert(&mut tx, seed.project_id, base, ReplicaKind::default(), &bounds(0, 1)).await.unwrap_err();
    assert!(again.on_constraint(POOL_KEY), "{again:?}");
    drop(tx);
    let mut theirs = db::tenant(&pool, other).await.unwrap();
    assert_eq!(deployment::list(&mut theirs, other, None, 10).await.unwrap(), []);
    let lost = deployment::delete(&mut theirs, other, made.deployment_id).await;
    assert!(matches!(lost, Err(StoreError::NotFound("deployment"))));
    drop(theirs);
    let mut mine = db::tenant(&pool, seed.project_id).await.unwrap();
    assert_eq!(deployment::list(&mut mine, seed.project_id, None, 10).await.unwrap().len(), 1);
    deployment::delete(&mut mine, seed.project_id, made.deployment_id).await.unwrap();
    assert_eq!(deployment::list(&mut mine, seed.project_id, None, 10).await.unwrap(), []);
}

#[sqlx::test(migrations = false)]
async fn a_deployment_pays_for_its_own_replicas_by_the_hour(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let mine = deploy(&pool, seed.project_id, base, &bounds(0, 4)).await;
    let theirs = deploy(&pool, other, base, &bounds(0, 1)).await;
    for base in [mine.base, mine.base, theirs.base, base] {
        ready(&mut conn, base).await;
    }
    let shown = async |project: ProjectId, of: &Deployment| {
        let mut tx = db::tenant(&pool, project).await.unwrap();
        let shown = deployment::get(&mut tx, project, of.deployment_id).await.unwrap();
        (shown.node_ms, shown.micro_usd)
    };
    // The last charge was two minutes ago, and the machines are reserved since a minute.
    let age = "update deployment_use set charged_at = now() - interval '120 seconds';
        update node set created_at = now() - interval '60 seconds'";
    rows::execute(&pool, age).await.unwrap();
    deployment_use::charge(&mut conn, None).await.unwrap();
    let (ms, micro_usd) = shown(seed.project_id, &mine).await;
    assert!((120_000..124_000).contains(&ms), "two replicas: {ms}");
    assert!((33_333..34_500).contains(&micro_usd), "{micro_usd}");
    let (ms, _) = shown(other, &theirs).await;
    assert!((60_000..62_000).contains(&ms), "{ms}");
    deployment_use::charge(&mut conn, None).await.unwrap();
    let (again, _) = shown(seed.project_id, &mine).await;
    assert!(again < 124_000, "nothing is charged twice: {again}");

    // One that ended since the last charge is charged until its end.
    rows::execute(&pool, age).await.unwrap();
    let live = replica::of_pool(&mut conn, theirs.base).await.unwrap();
    replica::end(&mut conn, live[0].replica_id, None).await.unwrap();
    rows::execute(&pool, "update node set released_at = now() - interval '30 seconds' where released_at is not null")
        .await
        .unwrap();
    deployment_use::charge(&mut conn, None).await.unwrap();
    let (after, _) = shown(other, &theirs).await;
    assert!((29_000..32_000).contains(&(after - ms)), "{after} {ms}");

    // A deletion charges what is due.
    rows::execute(&pool, age).await.unwrap();
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    deployment::delete(&mut tx, seed.project_id, mine.deployment_id).await.unwrap();
    tx.commit().await.unwrap();
    let charged: i64 = sqlx::query_scalar(
        "select sum(node_ms)::bigint from usage where project_id = $1 and kind = 'deployment' and model = 'tiny'",
    )
    .bind(seed.project_id.uuid())
    .fetch_one(&mut *conn)
    .await
    .unwrap();
    assert!((360_000..372_000).contains(&charged), "three times two minutes: {charged}");
}

#[sqlx::test(migrations = false)]
async fn a_spent_budget_suspends_the_deployment(pool: PgPool) {
    let (seed, _, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let made = deploy(&pool, seed.project_id, base, &bounds(2, 3)).await;
    for (budget, minimum, maximum) in [(Some(0), 0, 0), (Some(1_000_000), 2, 3), (Some(0), 0, 0), (None, 2, 3)] {
        let mut tx = db::platform(&pool).await.unwrap();
        money::set_budget(&mut tx, seed.project_id, budget).await.unwrap();
        deployment_use::suspend_unaffordable(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        let found = state(&mut conn).await.remove(0);
        assert_eq!((found.min_replicas, found.max_replicas), (minimum, maximum), "{budget:?}");
        let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
        let used = deployment::pool_of(&mut tx, seed.project_id, base.base_model_id, base.quantization).await.unwrap();
        assert_eq!(used, if maximum == 0 { base } else { made.base }, "its requests use the shared replicas meanwhile");
    }
}

#[sqlx::test(migrations = false)]
async fn a_deployment_without_a_request_for_a_day_is_reported_once_until_the_next(pool: PgPool) {
    let (seed, _, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let made = deploy(&pool, seed.project_id, base, &bounds(1, 1)).await;
    let age = "update deployment_use set last_request_at = now() - interval '25 hours'";
    for round in 0..2 {
        assert_eq!(deployment_use::notify_idle(&mut conn).await.unwrap(), 0, "round {round}: it had a request");
        sqlx::query(age).execute(&mut *conn).await.unwrap();
        assert_eq!(deployment_use::notify_idle(&mut conn).await.unwrap(), 1);
        assert_eq!(deployment_use::notify_idle(&mut conn).await.unwrap(), 0);
        replica::ensure_for(&mut conn, made.base, Some(seed.project_id)).await.unwrap();
    }
    let told: Vec<(String, serde_json::Value)> =
        sqlx::query_as("select type, data from outbox where type = 'deployment.idle'")
            .fetch_all(&mut *conn)
            .await
            .unwrap();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].1["model"], "tiny");
}

#[sqlx::test(migrations = false)]
async fn an_idle_replica_of_a_minimum_stays(pool: PgPool) {
    let (seed, _, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let base = deploy(&pool, seed.project_id, base, &bounds(1, 2)).await.base;
    ready(&mut conn, base).await;
    ready(&mut conn, base).await;
    testing::pass_a_minute(&mut conn).await.unwrap();
    let live = replica::of_pool(&mut conn, base).await.unwrap();
    assert!(replica::end_if_idle(&mut conn, live[0].replica_id, 30.0).await.unwrap());
    assert!(!replica::end_if_idle(&mut conn, live[1].replica_id, 30.0).await.unwrap());
}

#[sqlx::test(migrations = false)]
async fn a_new_engine_replaces_the_replicas_of_the_pool(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    ready(&mut conn, base).await;
    let made = deploy(&pool, seed.project_id, base, &bounds(0, 2)).await;
    let theirs = deploy(&pool, other, base, &bounds(0, 2)).await;
    ready(&mut conn, made.base).await;
    ready(&mut conn, theirs.base).await;
    let counts = async |conn: &mut PgConnection, base: ServedBase| {
        let pools = state(conn).await;
        let pool = pools.into_iter().find(|pool| pool.base == base).unwrap();
        (pool.replicas, pool.ready, pool.outdated)
    };
    let vllm = ReplicaKind { engine: Engine::Vllm, device: ReplicaDevice::Cuda, ..ReplicaKind::default() };
    let changed = change(&pool, seed.project_id, &made, vllm, &made.bounds).await;
    assert_eq!(changed.kind, vllm);
    assert_eq!(counts(&mut conn, made.base).await, (0, 0, 1));
    ready(&mut conn, made.base).await;
    assert_eq!(counts(&mut conn, made.base).await, (1, 1, 1));
    assert_eq!(replica::drain_outdated(&mut conn, made.base, vllm).await.unwrap(), 1);
    assert_eq!(counts(&mut conn, made.base).await, (1, 1, 0));
    let [left] = &replica::of_pool(&mut conn, made.base).await.unwrap()[..] else { panic!("not one replica") };
    assert_eq!(left.kind, vllm);
    for other in [base, theirs.base] {
        assert_eq!(counts(&mut conn, other).await, (1, 1, 0), "of another pool");
    }
}

/// Replicas are started with the draft model and the type of keys and values of their deployment, and replaced when
/// these change. A draft model is in use like a base.
#[sqlx::test(migrations = false)]
async fn the_decoding_of_a_deployment_is_that_of_its_replicas(pool: PgPool) {
    let (seed, _, base) = two_projects(&pool).await;
    let project = seed.project_id;
    let mut conn = pool.acquire().await.unwrap();
    let mut tx = db::tenant(&pool, project).await.unwrap();
    let architecture = base_model::get(&mut tx, base.base_model_id).await.unwrap().architecture;
    let new = NewBaseModel { name: "small", architecture: &architecture, files: &[], origin: None, license: None };
    let small = base_model::insert(&mut tx, Some(project), &new).await.unwrap().base_model_id;
    tx.commit().await.unwrap();
    let made = deploy(&pool, project, base, &bounds(0, 2)).await;
    ready(&mut conn, made.base).await;
    let outdated = async |conn: &mut PgConnection| {
        state(conn).await.into_iter().find(|pool| pool.base == made.base).unwrap().outdated
    };
    assert_eq!(outdated(&mut conn).await, 0);
    let draft = ReplicaKind { draft: Some(small), ..ReplicaKind::default() };
    let both = ReplicaKind { kv_cache_dtype: KvCacheDtype::Int8, ..draft };
    for (count, kind) in [(1, draft), (2, both)] {
        let changed = change(&pool, project, &made, kind, &made.bounds).await;
        assert_eq!((changed.kind, changed.draft_model.as_deref()), (kind, Some("small")));
        assert_eq!(outdated(&mut conn).await, count);
        ready(&mut conn, made.base).await;
        assert_eq!(outdated(&mut conn).await, count, "a new one has the new kind");
    }
    assert_eq!(replica::drain_outdated(&mut conn, made.base, both).await.unwrap(), 2);
    let [left] = &replica::of_pool(&mut conn, made.base).await.unwrap()[..] else { panic!("not one replica") };
    assert_eq!(left.kind, both);
    let mut tx = db::tenant(&pool, project).await.unwrap();
    let uses = base_model::delete(&mut tx, project, small).await.unwrap();
    assert_eq!(uses, Some(Uses { deployments: vec![made.bounds.name.clone()], ..Uses::default() }));
}

#[sqlx::test(migrations = false)]
async fn a_replica_that_was_not_launched_is_wanted_again(pool: PgPool) {
    let (_, _, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let id = replica::start(&mut conn, base, None).await.unwrap();
    let placement = replicas::placement(0);
    for _ in 0..5 {
        replica::place(&mut conn, id, &placement).await.unwrap().unwrap();
        assert_eq!(node::active(&mut conn, "local").await.unwrap().len(), 1);
        replica::want_again(&mut conn, id).await.unwrap();
        assert_eq!(node::active(&mut conn, "local").await.unwrap().len(), 0);
    }
    let waiting = replica::get(&mut conn, id).await.unwrap();
    assert_eq!((waiting.state, waiting.error, waiting.node_id), (ReplicaState::Wanted, None, None));
}

#[sqlx::test(migrations = false)]
async fn a_base_model_with_a_deployment_is_in_use(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let mine = deploy(&pool, seed.project_id, base, &bounds(0, 1)).await;
    let theirs = deploy(&pool, other, base, &bounds(0, 1)).await;
    let delete = async || {
        let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
        db::as_installation(&mut tx).await.unwrap();
        let uses = base_model::delete(&mut tx, seed.project_id, base.base_model_id).await.unwrap();
        tx.commit().await.unwrap();
        uses
    };
    let uses = Uses { deployments: vec![mine.bounds.name.clone()], elsewhere: 1, ..Uses::default() };
    assert_eq!(delete().await, Some(uses));
    for (project, id) in [(seed.project_id, mine.deployment_id), (other, theirs.deployment_id)] {
        let mut tx = db::tenant(&pool, project).await.unwrap();
        deployment::delete(&mut tx, project, id).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(delete().await, None);
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let gone = deployment::insert(&mut tx, seed.project_id, base, ReplicaKind::default(), &bounds(0, 1)).await;
    assert!(matches!(gone, Err(StoreError::NotFound("model"))), "{gone:?}");
}
