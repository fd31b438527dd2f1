//! The residency of adapters: prefetches, reports of where adapters are, and the removal of deleted ones.

use attune_domain::{
    bytes::Bytes,
    id::{AdapterVersionId, CheckpointId, DeploymentId, ReplicaId},
    offer::ReplicaKind,
    run::Directive,
    serve::{AdapterKey, AdapterState, AdapterTier, DiskAdapter, ReplicaReply, ReplicaReport},
    spec::Quantization,
};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::replica::says;
use crate::{
    adapters::{adapter, adapter_prefetch},
    db,
    pools::{
        deployment::{self, Bounds},
        pins,
    },
    replica::{self, ServedBase},
    testing::{self, Seed, replicas::placement, seed},
    tests::adapter::imported,
};

/// Starts a ready replica of the base that [`imported`] versions are served over.
async fn ready(conn: &mut PgConnection, seed: Seed) -> ReplicaId {
    let id = replica::start(conn, ServedBase::as_imported(seed.base_model_id), None).await.unwrap();
    replica::place(conn, id, &placement(0)).await.unwrap().unwrap();
    replica::take_report(conn, id, &here()).await.unwrap();
    id
}

fn here() -> ReplicaReport {
    says(Some("127.0.0.1:9"), 0)
}

/// Returns the instructions in the reply to a report.
async fn reply(conn: &mut PgConnection, id: ReplicaId, report: &ReplicaReport) -> ReplicaReply {
    let reply = replica::take_report(conn, id, report).await.unwrap();
    let replica = replica::get(conn, id).await.unwrap();
    replica::instruct(conn, &testing::unreachable_objects(), &replica, report, reply).await.unwrap()
}

fn in_memory(id: AdapterVersionId) -> AdapterState {
    AdapterState {
        id: AdapterKey::Version(id),
        bytes: Bytes(7),
        requests: 2,
        idle_seconds: 3,
        load_ms: 40,
        loaded_from: AdapterTier::Disk,
    }
}

#[sqlx::test(migrations = false)]
async fn a_version_is_prefetched_until_it_is_in_memory_and_kept_until_the_prefetch_expires(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (conn, project) = (&mut *conn, seed.project_id);
    let version = imported(conn, seed, "house", '1').await.adapter_version_id;
    let key = AdapterKey::Version(version);
    let id = ready(conn, seed).await;
    assert_eq!(reply(conn, id, &here()).await, ReplicaReply::new(Directive::Continue));

    let until = adapter_prefetch::set(conn, project, version, 600).await.unwrap().unwrap();
    assert_eq!(adapter_prefetch::until(conn, project, version).await.unwrap(), Some(until));
    let told = reply(conn, id, &here()).await;
    assert_eq!((told.pinned.as_slice(), told.prefetch.len(), told.prefetch[0].id), ([key].as_slice(), 1, key));
    assert!(told.prefetch[0].files[0].url.starts_with("http://127.0.0.1:9/"), "{told:?}");
    let loading = replica::take_report(conn, id, &says(None, 0)).await.unwrap();
    let replica = replica::get(conn, id).await.unwrap();
    let objects = testing::unreachable_objects();
    let told = replica::instruct(conn, &objects, &replica, &says(None, 0), loading.clone()).await.unwrap();
    assert_eq!(told, loading, "a replica without an address still loads its base");
    let resident = ReplicaReport { resident_adapters: vec![key], ..here() };
    let told = reply(conn, id, &resident).await;
    assert_eq!((told.pinned, told.prefetch), (vec![key], vec![]));
    let pinned = ReplicaReply { pinned: vec![key], ..ReplicaReply::new(Directive::Continue) };
    let told = replica::instruct(conn, &objects, &replica, &here(), pinned.clone()).await.unwrap();
    assert_eq!(told, pinned, "the reply has the adapter already");

    // A base in another quantization is another pool.
    let other = ServedBase { quantization: Quantization::Int8, ..replica.base };
    assert!(adapter_prefetch::of_pool(conn, other).await.unwrap().is_empty());
    // So are the replicas of a deployment, which only its project's requests use.
    let other = ServedBase { deployment_id: Some(DeploymentId::new(Uuid::from_u128(3))), ..replica.base };
    assert!(adapter_prefetch::of_pool(conn, other).await.unwrap().is_empty());

    let later = adapter_prefetch::set(conn, project, version, 1200).await.unwrap().unwrap();
    assert!(later > until);
    sqlx::query("update adapter_prefetch set expires_at = now()").execute(&mut *conn).await.unwrap();
    assert_eq!(adapter_prefetch::until(conn, project, version).await.unwrap(), None);
    assert_eq!(reply(conn, id, &here()).await.pinned, []);
}

#[sqlx::test(migrations = false)]
async fn limit_of_prefetched_versions(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (conn, project) = (&mut *conn, seed.project_id);
    let mut versions = Vec::new();
    for number in 0..=adapter_prefetch::MOST_PER_PROJECT {
        versions.push(imported(conn, seed, &format!("house{number}"), '1').await.adapter_version_id);
    }
    let (last, others) = versions.split_last().unwrap();
    for version in others {
        assert!(adapter_prefetch::set(conn, project, *version, 600).await.unwrap().is_some());
    }
    assert_eq!(adapter_prefetch::set(conn, project, *last, 600).await.unwrap(), None);
    assert!(adapter_prefetch::set(conn, project, others[0], 60).await.unwrap().is_some(), "it is replaced");
    let id = ready(conn, seed).await;
    let told = reply(conn, id, &here()).await;
    assert_eq!((told.pinned.len(), told.prefetch.len()), (others.len(), 8), "some at a time");
    sqlx::query("update adapter_prefetch set expires_at = now() where expires_at < now() + interval '5 minutes'")
        .execute(&mut *conn)
        .await
        .unwrap();
    assert!(adapter_prefetch::set(conn, project, *last, 600).await.unwrap().is_some(), "an expired one does not count");
}

/// One project's prefetches do not displace those of others, however late they expire.
#[sqlx::test(migrations = false)]
async fn limit_of_the_prefetched_versions_of_a_pool(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let conn = &mut *conn;
    let version = imported(conn, seed, "house", '1').await.adapter_version_id;
    adapter_prefetch::set(conn, seed.project_id, version, 60).await.unwrap().unwrap();
    let other = testing::neighbor(conn, seed, "loud").await.unwrap();
    for _ in 0..257 {
        imported(conn, other, "loud", '1').await;
    }
    let all = "insert into adapter_prefetch
         select adapter_version_id, project_id, now() + interval '1 day' from adapter_version where project_id = $1";
    sqlx::query(all).bind(other.project_id.uuid()).execute(&mut *conn).await.unwrap();
    let kept = adapter_prefetch::of_pool(conn, ServedBase::as_imported(seed.base_model_id)).await.unwrap();
    assert_eq!(kept.len(), 256);
    assert!(kept.iter().any(|kept| kept.adapter_version_id == version));
    let id = ready(conn, seed).await;
    let mut tries = 0;
    while !reply(conn, id, &here()).await.prefetch.iter().any(|adapter| adapter.id == AdapterKey::Version(version)) {
        tries += 1;
        assert!(tries < 2000, "each of 256 is among the 8 of a reply one time in 32");
    }
}

#[sqlx::test(migrations = false)]
async fn a_reply_names_all_pinned_adapters_and_has_some_at_a_time_loaded(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let mut pinned_adapters = Vec::new();
    for number in 0..10 {
        let version = imported(&mut conn, seed, &format!("house{number}"), '1').await;
        pinned_adapters.push(version.adapter_version_id);
    }
    let base = ServedBase::as_imported(seed.base_model_id);
    let bounds = Bounds {
        name: "d".into(),
        min_replicas: 0,
        max_replicas: 1,
        target_concurrency: None,
        cooldown_seconds: None,
        pinned_adapters,
    };
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let made = deployment::insert(&mut tx, seed.project_id, base, ReplicaKind::default(), &bounds).await.unwrap();
    tx.commit().await.unwrap();
    let (shared, base) = (base, made.unwrap().base);
    let objects = testing::unreachable_objects();
    let none = pins::of_pool(&mut conn, &objects, shared, &[]).await.unwrap();
    assert_eq!((none.pinned, none.prefetch), (vec![], vec![]), "replicas that projects share pin nothing");
    let first = pins::of_pool(&mut conn, &objects, base, &[]).await.unwrap();
    assert_eq!((first.pinned.len(), first.prefetch.len()), (10, 8));
    let resident: Vec<AdapterKey> = first.prefetch.iter().map(|adapter| adapter.id).collect();
    let second = pins::of_pool(&mut conn, &objects, base, &resident).await.unwrap();
    assert_eq!((second.pinned.len(), second.prefetch.len()), (10, 2));
    assert!(second.prefetch.iter().all(|adapter| !resident.contains(&adapter.id)));
}

#[sqlx::test(migrations = false)]
async fn the_residency_of_a_version_is_what_its_replicas_reported(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let version = imported(&mut conn, seed, "house", '1').await.adapter_version_id;
    let key = AdapterKey::Version(version);
    let (first, second, third) =
        (ready(&mut conn, seed).await, ready(&mut conn, seed).await, ready(&mut conn, seed).await);
    let disk = Some(vec![DiskAdapter { id: key, bytes: Bytes(9) }]);
    let report = ReplicaReport {
        resident_adapters: vec![key],
        adapter_states: vec![in_memory(version)],
        disk_adapters: disk.clone(),
        ..here()
    };
    replica::take_report(&mut conn, first, &report).await.unwrap();
    replica::take_report(&mut conn, second, &ReplicaReport { disk_adapters: disk, ..here() }).await.unwrap();
    // A report that does not list the disk keeps the last listing; the memory is always listed.
    replica::take_report(&mut conn, second, &here()).await.unwrap();
    drop(conn);

    let base = ServedBase::as_imported(seed.base_model_id);
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let found = replica::of_version(&mut tx, base, version).await.unwrap();
    let states: Vec<_> = found.iter().map(|one| (one.replica_id, one.memory.clone(), one.disk)).collect();
    let wanted =
        [(first, Some(in_memory(version)), Some(Bytes(9))), (second, None, Some(Bytes(9))), (third, None, None)];
    assert_eq!(states, wanted);
    assert!(found.iter().all(|one| !one.is_draining));
    let unknown = AdapterVersionId::new(Uuid::from_u128(1));
    let found = replica::of_version(&mut tx, base, unknown).await.unwrap();
    assert!(found.iter().all(|one| one.memory.is_none() && one.disk.is_none()));
}

#[sqlx::test(migrations = false)]
async fn deleted_adapters_are_forgotten(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (conn, project) = (&mut *conn, seed.project_id);
    let kept = imported(conn, seed, "house", '1').await;
    let deleted = imported(conn, seed, "house", '2').await;
    adapter_prefetch::set(conn, project, deleted.adapter_version_id, 600).await.unwrap().unwrap();
    let id = ready(conn, seed).await;
    let [kept, gone] = [&kept, &deleted].map(|version| AdapterKey::Version(version.adapter_version_id));
    let checkpoint = AdapterKey::Checkpoint(CheckpointId::new(Uuid::from_u128(9)));
    let on_disk = [kept, gone, checkpoint].map(|id| DiskAdapter { id, bytes: Bytes(9) });
    let report = ReplicaReport { resident_adapters: vec![kept, gone], disk_adapters: Some(on_disk.to_vec()), ..here() };
    assert_eq!(reply(conn, id, &report).await.forget, [checkpoint], "no checkpoint has this ID");
    assert_eq!(adapter::delete(conn, project, &deleted.model_name).await.unwrap(), None);
    let told = reply(conn, id, &report).await;
    assert_eq!((told.forget, told.pinned), (vec![gone, checkpoint], vec![]));
    let unlisted = ReplicaReport { disk_adapters: None, ..report };
    assert_eq!(reply(conn, id, &unlisted).await.forget, [], "checked when the disk is listed");
}
