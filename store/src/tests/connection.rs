//! Dropped requests: at any moment, nothing of theirs may leak to the next user of their connection.

use std::{net::Ipv4Addr, pin::pin};

use attune_domain::{
    access::Actor,
    id::{ApiKey, ProjectId},
};
use futures::future::{Either, select};
use rand::RngExt;
use sqlx::{Connection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use crate::{
    db::{self, Tenant},
    error::StoreError,
    ids,
    tenancy::{audit::Origin, tenant},
    testing::seed,
};

/// The size of the pool under test.
const CONNECTIONS: u32 = 4;

/// The number of dropped requests before each check of the connections.
const BURST: usize = 50;

/// Runs `request` to its end, or for some turns of the runtime. Returns whether it was dropped.
async fn dropped(request: impl Future, turns: u32) -> bool {
    let leaves = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    matches!(select(pin!(request), pin!(leaves)).await, Either::Right(_))
}

/// Runs a request: a transaction of a tenant with one statement, and its end.
async fn request(pool: &PgPool, project: ProjectId, ends: bool) -> Result<(), StoreError> {
    let origin = Origin {
        actor: Actor::ApiKey(ids::id::<ApiKey>()),
        address: Some(Ipv4Addr::LOCALHOST.into()),
        request: Uuid::new_v4(),
        operation: "delete_file",
    };
    let mut tx = db::scoped(pool, Tenant::Project(project), Some(origin)).await?;
    sqlx::query("select set_config('attune.probe', 'left', true)").execute(&mut *tx).await?;
    if ends { tx.commit().await } else { tx.rollback().await }
}

/// Counts the pool's connections that still have a dropped request's settings or transaction.
async fn leaks(pool: &PgPool) -> usize {
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(pool.acquire().await.unwrap());
    }
    let mut leaks = 0;
    for connection in &mut held {
        let settings: String = sqlx::query_scalar(
            "select concat(current_setting('attune.project_id', true), current_setting('attune.origin', true),
                 current_setting('attune.probe', true), nullif(current_user, session_user))",
        )
        .fetch_one(&mut **connection)
        .await
        .unwrap_or_else(|error| error.to_string());
        // Only inside an open transaction does a transaction-local setting last until the next statement.
        let open =
            sqlx::query("select set_config('attune.open', 'yes', true)").execute(&mut **connection).await.is_err()
                || sqlx::query_scalar::<_, Option<String>>("select nullif(current_setting('attune.open', true), '')")
                    .fetch_one(&mut **connection)
                    .await
                    .map_or(true, |open| open.is_some());
        if open || !settings.is_empty() {
            leaks += 1;
            sqlx::raw_sql("rollback").execute(&mut **connection).await.unwrap();
        }
    }
    leaks
}

async fn small_pool(pool: &PgPool) -> PgPool {
    let options = (*pool.connect_options()).clone();
    PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false).connect_with(options).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn attack_a10_dropped_requests_leave_no_setting_and_no_open_transaction(pool: PgPool) {
    const REQUESTS: usize = 5_000;
    let project = seed(&pool).await.unwrap().project_id;
    let small = small_pool(&pool).await;
    let (mut asked, mut cancelled, mut leaked) = (0, 0, 0);
    while cancelled < REQUESTS {
        assert!(asked < 40 * REQUESTS, "only {cancelled} of {asked} requests were dropped");
        for _ in 0..BURST {
            let (turns, ends) = (rand::rng().random_range(0..12), rand::rng().random());
            asked += 1;
            cancelled += usize::from(dropped(request(&small, project, ends), turns).await);
        }
        leaked += leaks(&small).await;
    }
    println!("FIGURE cancelled_requests {cancelled}");
    println!("FIGURE leaked_settings {leaked}");
    assert_eq!(leaked, 0, "of {cancelled} dropped requests");
    // The pool still works.
    let mut tx = db::platform(&small).await.unwrap();
    tenant::ensure(&mut tx, "default", "afterwards").await.unwrap();
    tx.commit().await.unwrap();
}

/// The control: without [`crate::connection`] the same drops leave open transactions. If it fails, sqlx has fixed the
/// bug.
#[sqlx::test(migrations = false)]
async fn attack_a10_control_sqlx_itself_leaves_transactions_open(pool: PgPool) {
    let small = small_pool(&pool).await;
    let mut leaked = 0;
    for _ in 0..40 {
        for _ in 0..BURST {
            let begin = small.begin_with("begin; set local attune.probe = 'left'");
            dropped(begin, rand::rng().random_range(0..6)).await;
        }
        leaked += leaks(&small).await;
    }
    assert!(leaked > 0, "sqlx leaves no transaction open any more: store/src/connection.rs can go");
}

/// A transaction whose `begin` fails leaves no failed transaction behind.
#[sqlx::test(migrations = false)]
async fn a_begin_that_is_refused_leaves_no_failed_transaction(pool: PgPool) {
    let small = small_pool(&pool).await;
    // The role does not exist: the second command of the text is refused.
    let text = sqlx::SqlSafeStr::into_sql_str("begin; set local role nobody_is_called_so");
    for _ in 0..2 * CONNECTIONS {
        crate::connection::Tx::begin(&small, text.clone()).await.unwrap_err();
    }
    assert_eq!(leaks(&small).await, 0);
    small.acquire().await.unwrap().ping().await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn a_part_of_a_transaction_is_undone_and_the_others_are_committed(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut tx = db::platform(&pool).await.unwrap();
    let names = ["first", "undone", "failed", "last"];
    for name in names {
        tx.savepoint().await.unwrap();
        tenant::ensure(&mut tx, "default", name).await.unwrap();
        if name == "failed" {
            sqlx::query("select 1 / 0").execute(&mut *tx).await.unwrap_err();
        }
        if name == "undone" || name == "failed" {
            tx.rollback_to_savepoint().await.unwrap();
        }
    }
    tx.commit().await.unwrap();
    let kept: Vec<String> =
        sqlx::query_scalar("select name from project where name = any($1) order by created_at, name")
            .bind(names.map(str::to_owned).to_vec())
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(kept, ["first", "last"]);

    // A dropped transaction takes its savepoint with it.
    let mut tx = db::platform(&pool).await.unwrap();
    tx.savepoint().await.unwrap();
    tenant::ensure(&mut tx, "default", "dropped").await.unwrap();
    drop(tx);
    let left = sqlx::query_scalar::<_, i64>("select count(*) from project where name = 'dropped'");
    assert_eq!(left.fetch_one(&pool).await.unwrap(), 0);
}

#[sqlx::test(migrations = false)]
async fn attack_a05_a_task_that_holds_a_connection_gets_no_second_one(pool: PgPool) {
    seed(&pool).await.unwrap();
    let task = tokio::spawn(async move {
        let first = db::platform(&pool).await.unwrap();
        assert!(matches!(db::platform(&pool).await, Err(StoreError::Nested)));
        assert!(matches!(db::single(&pool).await, Err(StoreError::Nested)));
        drop(first);
        let second = db::single(&pool).await.unwrap();
        assert!(matches!(db::begin(&pool).await, Err(StoreError::Nested)));
        // Another task may hold one meanwhile.
        let other = pool.clone();
        tokio::spawn(async move { db::platform(&other).await.map(drop) }).await.unwrap().unwrap();
        drop(second);
        db::begin(&pool).await.unwrap().commit().await.unwrap();
        db::begin(&pool).await.unwrap();
    });
    task.await.unwrap();
}
