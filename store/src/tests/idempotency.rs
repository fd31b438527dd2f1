//! Idempotency keys and row versions, with two concurrent connections.

use attune_domain::id::{OrganizationId, ProjectId};
use sqlx::{PgConnection, PgPool};

use crate::{
    db::{self, Tenant},
    error::StoreError,
    idempotency::{self, Answer, Claim, Found},
    jobs::job,
    tenancy::tenant,
    testing::{new_job, seed},
    version::{self, Thing},
};

fn free(found: Found) -> Claim {
    match found {
        Found::Free(claim) => claim,
        other => panic!("not free: {other:?}"),
    }
}

async fn outlive(pool: &PgPool, interval: &str) {
    let age = "update idempotency_key set held_until = held_until - $1::text::interval,
        created_at = created_at - $1::text::interval";
    let mut tx = db::platform(pool).await.unwrap();
    sqlx::query(age).bind(interval).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

async fn organization_of(conn: &mut PgConnection, project: ProjectId) -> OrganizationId {
    let id = sqlx::query_scalar("select organization_id from project where project_id = $1").bind(project.uuid());
    OrganizationId::new(id.fetch_one(conn).await.unwrap())
}

#[sqlx::test(migrations = false)]
async fn a_key_is_held_then_answered_and_then_forgotten(pool: PgPool) {
    let project = seed(&pool).await.unwrap().project_id;
    let take = async |request: &str| {
        let mut tx = db::tenant(&pool, project).await.unwrap();
        let found = idempotency::claim(&mut tx, Tenant::Project(project), "k", request).await.unwrap();
        tx.commit().await.unwrap();
        found
    };
    let claim = free(take("POST /a").await);
    assert_eq!(take("POST /a").await, Found::Held);
    assert_eq!(take("POST /b").await, Found::Other("POST /a".into()));

    let answer = Answer { status: 200, headers: serde_json::json!({}), body: b"{}".to_vec() };
    let mut tx = db::tenant(&pool, project).await.unwrap();
    idempotency::answer(&mut tx, &claim, b"digest", &answer).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(take("POST /a").await, Found::Answered { claim: claim.claim, body_sha256: b"digest".to_vec(), answer });

    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    let mut tx = db::tenant(&pool, other).await.unwrap();
    free(idempotency::claim(&mut tx, Tenant::Project(other), "k", "POST /a").await.unwrap());
    drop(tx);

    // The organization's administration has keys of its own, and sees none of a project's.
    let organization = Tenant::Organization(organization_of(&mut conn, project).await);
    let mut tx = db::scoped(&pool, organization, None).await.unwrap();
    let owned = free(idempotency::claim(&mut tx, organization, "k", "POST /a").await.unwrap());
    idempotency::mark(&mut tx, &owned).await.unwrap();
    assert!(matches!(idempotency::mark(&mut tx, &claim).await, Err(StoreError::Stale)), "row security hides it");
    drop(tx);

    outlive(&pool, "25 hours").await;
    let next = free(take("POST /b").await);
    assert_ne!(next.claim, claim.claim);
    outlive(&pool, "25 hours").await;
    let mut tx = db::platform(&pool).await.unwrap();
    assert_eq!(idempotency::forget_old(&mut tx).await.unwrap().gone, 1);
}

#[sqlx::test(migrations = false)]
async fn of_eight_twins_one_gets_the_key(pool: PgPool) {
    let project = seed(&pool).await.unwrap().project_id;
    let twins = (0..8).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut tx = db::tenant(&pool, project).await.unwrap();
            let found = idempotency::claim(&mut tx, Tenant::Project(project), "k", "POST /a").await.unwrap();
            tx.commit().await.unwrap();
            found
        })
    });
    let mut found = Vec::new();
    for twin in twins.collect::<Vec<_>>() {
        found.push(twin.await.unwrap());
    }
    assert_eq!(found.iter().filter(|found| matches!(found, Found::Free(_))).count(), 1, "{found:?}");
    assert_eq!(found.iter().filter(|found| **found == Found::Held).count(), 7, "{found:?}");
}

#[sqlx::test(migrations = false)]
async fn after_a_crash_a_key_is_free_only_if_nothing_was_made(pool: PgPool) {
    let project = seed(&pool).await.unwrap().project_id;
    let take = async |key: &str| {
        let mut tx = db::tenant(&pool, project).await.unwrap();
        let found = idempotency::claim(&mut tx, Tenant::Project(project), key, "POST /a").await.unwrap();
        tx.commit().await.unwrap();
        found
    };
    let (kept, undone) = (free(take("kept").await), free(take("undone").await));
    let mut tx = db::tenant(&pool, project).await.unwrap();
    idempotency::mark(&mut tx, &kept).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = db::tenant(&pool, project).await.unwrap();
    idempotency::mark(&mut tx, &undone).await.unwrap();
    drop(tx);

    outlive(&pool, "2 minutes").await;
    assert_eq!(take("kept").await, Found::Lost);
    free(take("undone").await);
    // The process that seemed lost returns: its change can no longer be committed.
    let mut tx = db::tenant(&pool, project).await.unwrap();
    assert!(matches!(idempotency::mark(&mut tx, &undone).await, Err(StoreError::Stale)));
    assert!(!idempotency::release(&mut tx, &kept).await.unwrap(), "it made something");
}

#[sqlx::test(migrations = false)]
async fn of_two_changes_to_the_same_version_the_second_sees_another(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let id = new_job(&mut tx, seed).await.unwrap();
    tx.commit().await.unwrap();
    let names = [id.to_string()];
    let of = Tenant::Project(seed.project_id);

    let mut first = db::tenant(&pool, seed.project_id).await.unwrap();
    let read = version::of(&mut first, of, Thing::Job, &names).await.unwrap();
    assert_eq!(version::lock(&mut first, of, Thing::Job, &names).await.unwrap(), read);
    let second = tokio::spawn({
        let (pool, names) = (pool.clone(), names.clone());
        async move {
            let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
            version::lock(&mut tx, of, Thing::Job, &names).await.unwrap()
        }
    });
    job::cancel(&mut first, seed.project_id, id).await.unwrap();
    first.commit().await.unwrap();
    let seen = second.await.unwrap();
    assert!(seen.is_some() && seen != read, "{seen:?} after {read:?}");

    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    let mut tx = db::tenant(&pool, other).await.unwrap();
    assert_eq!(version::of(&mut tx, Tenant::Project(other), Thing::Job, &names).await.unwrap(), None);
    assert_eq!(version::of(&mut tx, Tenant::Project(other), Thing::Job, &["nonsense".into()]).await.unwrap(), None);
}
