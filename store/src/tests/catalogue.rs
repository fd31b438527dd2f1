//! The catalogue of instance types, and the terms of jobs for their offers.

use attune_domain::{
    catalogue::{EntryId, InstanceType, built_in},
    id::JobId,
    offer::{ComputeLimits, Slowness},
};
use sqlx::{PgConnection, PgPool};

use crate::{
    catalogue,
    db::{self, Tenant},
    error::StoreError,
    jobs::{
        candidate::{self, Candidate},
        snapshot::{self, Measures, PLANNED_PER_PROJECT},
    },
    tenancy::tenant,
    testing::{queued_job, seed},
};

fn id() -> EntryId {
    "aws.g6.xlarge.us-east-1".parse().unwrap()
}

#[sqlx::test(migrations = false)]
async fn the_catalogue_is_changed_by_the_installation_alone(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let organization = tenant::ensure(&mut conn, "default", "default").await.unwrap().organization_id;
    let cheaper = InstanceType { usd_per_hour: 0.5, ..built_in().instance(&id()).unwrap().clone() };
    let mut administration = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
    let refused = catalogue::set(&mut administration, &cheaper).await.unwrap_err();
    assert!(format!("{refused:?}").contains("row-level security"), "{refused:?}");
    drop(administration);

    let mut tx = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
    db::as_installation(&mut tx).await.unwrap();
    assert_eq!(catalogue::load(&mut tx).await.unwrap().instances.len(), built_in().instances.len());
    assert_eq!(catalogue::version(&mut tx).await.unwrap(), "");
    catalogue::set(&mut tx, &cheaper).await.unwrap();
    assert_eq!(catalogue::get(&mut tx, &id()).await.unwrap(), cheaper);
    assert_eq!(catalogue::load(&mut tx).await.unwrap().instance(&id()), Some(&cheaper));
    catalogue::remove(&mut tx, &id()).await.unwrap();
    assert_eq!(catalogue::load(&mut tx).await.unwrap().instance(&id()), None);
    let gone = catalogue::remove(&mut tx, &id()).await;
    assert!(matches!(gone, Err(StoreError::NotFound("catalogue entry"))), "{gone:?}");
    catalogue::set(&mut tx, &cheaper).await.unwrap();
    assert_eq!(catalogue::get(&mut tx, &id()).await.unwrap(), cheaper);
    tx.commit().await.unwrap();
    // For the platform's own work, such as an estimate.
    let mut platform = db::platform(&pool).await.unwrap();
    let version = catalogue::version(&mut platform).await.unwrap();
    assert!(!version.is_empty());
    let mut tx = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
    db::as_installation(&mut tx).await.unwrap();
    catalogue::set(&mut tx, &cheaper).await.unwrap();
    tx.commit().await.unwrap();
    assert_ne!(catalogue::version(&mut platform).await.unwrap(), version, "each change has a version");
    assert_eq!(catalogue::load(&mut platform).await.unwrap().instance(&id()), Some(&cheaper));
}

async fn loaded(conn: &mut PgConnection, job: JobId) -> Candidate {
    candidate::load(conn, &[job]).await.unwrap().remove(&job).unwrap().unwrap()
}

#[sqlx::test(migrations = false)]
async fn the_terms_of_a_waiting_job_are_in_the_snapshot_and_relax_once_it_began(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (plain, limited) = (queued_job(&mut conn, seed).await.unwrap(), queued_job(&mut conn, seed).await.unwrap());
    let limits = ComputeLimits { max_micro_usd: Some(5), spot: true, ..ComputeLimits::default() };
    let stored = serde_json::to_value(&limits).unwrap();
    sqlx::query("update job set limits = $2 where job_id = $1")
        .bind(limited.uuid())
        .bind(stored)
        .execute(&mut *conn)
        .await
        .unwrap();
    let slowness = [Slowness { provider: "local".into(), offer: "a".into(), factor: 2.0 }];
    let measures = |slowness: &[Slowness]| Measures {
        need: attune_domain::bytes::Bytes::mib(300),
        seconds: 120.0,
        slowness: slowness.to_vec(),
    };
    let measured = [(plain, measures(&[])), (limited, measures(&slowness))];
    snapshot::measure(&mut conn, &measured).await.unwrap();
    let found = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await.unwrap().terms;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [limited]);
    assert_eq!((&found[&limited].limits, &found[&limited].slowness[..]), (&limits, &slowness[..]));

    sqlx::query("update job set attempts = 1 where job_id = $1")
        .bind(limited.uuid())
        .execute(&mut *conn)
        .await
        .unwrap();
    let found = loaded(&mut conn, limited).await;
    assert_eq!((found.terms.limits.max_micro_usd, found.terms.limits.spot, found.seconds), (None, true, 120.0));
    assert!(found.now > 1.7e9 && found.terms.slowness == slowness);
    snapshot::measure(&mut conn, &[(limited, measures(&[]))]).await.unwrap();
    assert!(loaded(&mut conn, limited).await.terms.slowness.is_empty());
}
