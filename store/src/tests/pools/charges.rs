//! Charges of deployments at the same time as other changes, and budgets that are spent already.

use std::time::Duration;

use sqlx::PgPool;

use super::deployment::{bounds, deploy, ready, two_projects};
use crate::{db, pools::deployment_use, tenancy::money, testing::rows};

/// The scheduler's charge and that of a deletion must not both charge the same time.
#[sqlx::test(migrations = false)]
async fn two_charges_at_the_same_time_charge_it_once(pool: PgPool) {
    let (seed, _, base) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    let made = deploy(&pool, seed.project_id, base, &bounds(1, 1)).await;
    ready(&mut conn, made.base).await;
    let age = "update deployment_use set charged_at = now() - interval '120 seconds';
        update node set created_at = now() - interval '60 seconds'";
    rows::execute(&pool, age).await.unwrap();

    let mut first = db::platform(&pool).await.unwrap();
    deployment_use::charge(&mut first, None).await.unwrap();
    let again = pool.clone();
    let second = tokio::spawn(async move {
        let mut tx = db::platform(&again).await.unwrap();
        deployment_use::charge(&mut tx, Some(made.deployment_id)).await.unwrap();
        tx.commit().await.unwrap();
    });
    let waiting = "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock'";
    for _ in 0..1000 {
        if sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *conn).await.unwrap() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.commit().await.unwrap();
    second.await.unwrap();
    let charged: i64 = sqlx::query_scalar("select sum(node_ms)::bigint from usage where kind = 'deployment'")
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    assert!((60_000..90_000).contains(&charged), "{charged}");
}

#[sqlx::test(migrations = false)]
async fn a_deployment_of_a_project_whose_budget_is_spent_has_no_replicas_from_the_beginning(pool: PgPool) {
    let (seed, other, base) = two_projects(&pool).await;
    let mut tx = db::platform(&pool).await.unwrap();
    money::set_budget(&mut tx, seed.project_id, Some(0)).await.unwrap();
    money::set_budget(&mut tx, other, Some(1_000_000)).await.unwrap();
    tx.commit().await.unwrap();
    assert!(deploy(&pool, seed.project_id, base, &bounds(1, 1)).await.is_suspended);
    assert!(!deploy(&pool, other, base, &bounds(1, 1)).await.is_suspended);
}
