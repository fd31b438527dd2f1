//! The lifecycle of a replica.

use attune_domain::{id::ReplicaId, run::Directive, serve::ReplicaReport, spec::Quantization};
use sqlx::{PgConnection, PgPool};

use crate::{
    error::StoreError,
    queue::EnsureReplica,
    replica::{self, ReplicaState, ServedBase},
    runs::node,
    tenancy::tenant,
    testing::{
        self,
        replicas::{self, placement},
        seed,
    },
};

pub(super) fn says(address: Option<&str>, active_requests: u64) -> ReplicaReport {
    ReplicaReport { address: address.map(Into::into), active_requests, ..ReplicaReport::default() }
}

#[sqlx::test(migrations = false)]
async fn many_who_want_a_replica_at_once_get_one(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let want = |pool: PgPool| async move {
        let mut tx = pool.begin().await.unwrap();
        let replica = replica::ensure(&mut tx, ServedBase::as_imported(seed.base_model_id)).await.unwrap();
        tx.commit().await.unwrap();
        replica.replica_id
    };
    let wants = (0..8).map(|_| tokio::spawn(want(pool.clone())));
    let got = futures::future::join_all(wants).await;
    let first = got[0].as_ref().unwrap();
    assert!(got.iter().all(|id| id.as_ref().unwrap() == first));
    let mut conn = pool.acquire().await.unwrap();
    assert_eq!(testing::messages::<EnsureReplica>(&mut conn).await.unwrap(), 1);
}

#[sqlx::test(migrations = false)]
async fn each_quantization_of_a_base_has_a_replica_of_its_own(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let mut ids = Vec::new();
    for quantization in Quantization::ALL.repeat(2) {
        let base = ServedBase::shared(seed.base_model_id, quantization);
        let replica = replica::ensure(&mut conn, base).await.unwrap();
        assert_eq!(replica.base, base);
        ids.push(replica.replica_id);
    }
    assert_eq!(ids[..4], ids[4..], "the second wish meets the first");
    assert_eq!(testing::messages::<EnsureReplica>(&mut conn).await.unwrap(), 4);
    // A replica's spec has its own quantization, and its end does not affect the others.
    let (int8, id) = (ids[1], ids[2]);
    replica::place(&mut conn, id, &placement(0)).await.unwrap().unwrap();
    let replica = replica::get(&mut conn, id).await.unwrap();
    let spec = replica::spec(&mut conn, &testing::unreachable_objects(), &replica).await.unwrap();
    assert_eq!(spec.quantization, Quantization::Nf4 { double_quant: false });
    assert!(replica::end(&mut conn, id, None).await.unwrap());
    assert_eq!(replica::get(&mut conn, int8).await.unwrap().state, ReplicaState::Wanted);
}

#[sqlx::test(migrations = false)]
async fn a_replica_from_wish_to_end(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let wanted = replica::ensure(&mut conn, ServedBase::as_imported(seed.base_model_id)).await.unwrap();
    let id = wanted.replica_id;
    assert_eq!((wanted.state, wanted.address), (ReplicaState::Wanted, None));
    assert_eq!(replica::by_token(&mut conn, &wanted.token).await.unwrap().replica_id, id);
    // A report before the launch is refused.
    assert!(matches!(replica::take_report(&mut conn, id, &says(None, 0)).await, Err(StoreError::Stale)));

    assert!(replica::place(&mut conn, id, &placement(0)).await.unwrap().is_some());
    assert!(replica::place(&mut conn, id, &placement(0)).await.unwrap().is_none(), "only once");
    replica::take_report(&mut conn, id, &says(None, 0)).await.unwrap();
    assert_eq!(replica::get(&mut conn, id).await.unwrap().state, ReplicaState::Launching);
    replica::take_report(&mut conn, id, &says(Some("127.0.0.1:9"), 0)).await.unwrap();
    let ready = replica::get(&mut conn, id).await.unwrap();
    assert_eq!((ready.state, ready.address.as_deref()), (ReplicaState::Ready, Some("127.0.0.1:9")));

    testing::pass_a_minute(&mut conn).await.unwrap();
    replica::take_report(&mut conn, id, &says(None, 1)).await.unwrap();
    assert!(!replica::end_if_idle(&mut conn, id, 30.0).await.unwrap(), "a request is in flight");
    testing::pass_a_minute(&mut conn).await.unwrap();
    assert!(replica::end_if_idle(&mut conn, id, 30.0).await.unwrap());
    assert!(node::active(&mut conn, "local").await.unwrap().is_empty());
    assert!(matches!(replica::take_report(&mut conn, id, &says(None, 0)).await, Err(StoreError::Stale)));
    assert_ne!(replica::ensure(&mut conn, ServedBase::as_imported(seed.base_model_id)).await.unwrap().replica_id, id);
}

#[sqlx::test(migrations = false)]
async fn a_replica_that_fails_says_why(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = replica::ensure(&mut conn, ServedBase::as_imported(seed.base_model_id)).await.unwrap().replica_id;
    replica::place(&mut conn, id, &placement(0)).await.unwrap();
    let last = ReplicaReport { failed: Some("no memory for /var/lib/node/w".into()), ..says(None, 0) };
    let reply = replica::take_report(&mut conn, id, &last).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    let ended = replica::get(&mut conn, id).await.unwrap();
    assert_eq!((ended.state, ended.error.as_deref()), (ReplicaState::Ended, Some("no memory for w")));
}

#[sqlx::test(migrations = false)]
async fn the_project_that_had_it_started_is_notified_and_no_other(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    for failed in [None, Some("no memory")] {
        let base = ServedBase::as_imported(seed.base_model_id);
        let wanted = replica::ensure_for(&mut conn, base, Some(seed.project_id)).await.unwrap();
        let id = wanted[0].replica_id;
        assert_eq!(replica::ensure_for(&mut conn, base, Some(other)).await.unwrap()[0].replica_id, id);
        replica::place(&mut conn, id, &placement(0)).await.unwrap();
        for _ in 0..2 {
            replica::take_report(&mut conn, id, &says(Some("127.0.0.1:9"), 0)).await.unwrap();
        }
        for _ in 0..2 {
            replica::end(&mut conn, id, failed).await.unwrap();
        }
    }
    let told: Vec<(String, serde_json::Value, uuid::Uuid)> =
        sqlx::query_as("select type, data, project_id from outbox order by event_id").fetch_all(&pool).await.unwrap();
    let types: Vec<&str> = told.iter().map(|(kind, ..)| kind.trim_start_matches("deployment.")).collect();
    assert_eq!(types, ["requested", "ready", "stopped", "requested", "ready", "failed"]);
    assert!(told.iter().all(|(_, data, project)| data["model"] == "tiny" && *project == seed.project_id.uuid()));
    assert_eq!((&told[2].1["error"], &told[5].1["error"]), (&serde_json::Value::Null, &"no memory".into()));
}

/// Returns a ready replica of a pool.
async fn ready(conn: &mut PgConnection, base: ServedBase, address: &str) -> ReplicaId {
    let id = replica::start(conn, base, None).await.unwrap();
    replicas::ready(conn, id, address, 0).await.unwrap();
    id
}

#[sqlx::test(migrations = false)]
async fn a_smaller_pool_drops_replicas_that_are_not_placed_and_then_drains_the_least_loaded(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let base = ServedBase::as_imported(seed.base_model_id);
    let (busy, free) = (ready(&mut conn, base, "127.0.0.1:9").await, ready(&mut conn, base, "127.0.0.1:10").await);
    let wanted = replica::start(&mut conn, base, None).await.unwrap();
    replica::take_report(&mut conn, busy, &says(None, 3)).await.unwrap();
    let live = replica::ensure_for(&mut conn, base, Some(seed.project_id)).await.unwrap();
    assert_eq!(live.iter().map(|replica| replica.replica_id).collect::<Vec<_>>(), [busy, free, wanted]);

    assert_eq!(replica::drain(&mut conn, base, 2, 1).await.unwrap(), 2);
    assert_eq!(replica::get(&mut conn, wanted).await.unwrap().state, ReplicaState::Ended);
    let draining = replica::get(&mut conn, free).await.unwrap();
    assert_eq!((draining.state, draining.draining_seconds.is_some()), (ReplicaState::Draining, true));
    let live = replica::of_pool(&mut conn, base).await.unwrap();
    assert_eq!(live.iter().map(|replica| replica.replica_id).collect::<Vec<_>>(), [busy], "no new requests for it");

    // It continues while it has requests, and for the time in which one may still arrive; then its report ends it.
    testing::age_draining(&mut conn).await.unwrap();
    let reply = replica::take_report(&mut conn, free, &says(None, 1)).await.unwrap();
    assert_eq!(reply.directive, Directive::Continue);
    let reply = replica::take_report(&mut conn, free, &says(None, 0)).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    assert_eq!(replica::get(&mut conn, free).await.unwrap().state, ReplicaState::Ended);
    assert_eq!(node::active(&mut conn, "local").await.unwrap().len(), 1);
    assert_eq!(replica::drain(&mut conn, base, 1, 0).await.unwrap(), 0, "the ready ones are needed");
    assert_eq!(replica::drain(&mut conn, base, 1, 1).await.unwrap(), 1);
    let reply = replica::take_report(&mut conn, busy, &says(None, 0)).await.unwrap();
    assert_eq!(reply.directive, Directive::Continue, "a request that was sent before may still arrive");
}
