//! Tokens of trainers and replicas. Unauthenticated callers may try any, which must not cost a scan of a table.

use sqlx::{PgConnection, PgPool};

use crate::{error::StoreError, replica, runs::run, testing::seed};

/// Sequential scans of a table by this connection, of which the statistics are not sent yet.
async fn scans(conn: &mut PgConnection, table: &str) -> i64 {
    let query = sqlx::query_scalar("select pg_stat_get_xact_numscans($1::text::regclass::oid)");
    query.bind(table).fetch_one(conn).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn attack_a_guessed_token_is_looked_up_by_an_index(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let before = (scans(&mut tx, "run").await, scans(&mut tx, "replica").await);
    // Small tables are scanned otherwise, whatever indexes they have.
    sqlx::query("set local enable_seqscan = off").execute(&mut *tx).await.unwrap();
    assert!(matches!(run::by_token(&mut tx, "guess").await, Err(StoreError::NotFound("run"))));
    assert!(matches!(replica::by_token(&mut tx, "guess").await, Err(StoreError::NotFound("replica"))));
    assert_eq!((scans(&mut tx, "run").await, scans(&mut tx, "replica").await), before);
    // The count sees a scan.
    sqlx::query("select from run where attempt = -1").execute(&mut *tx).await.unwrap();
    assert_eq!(scans(&mut tx, "run").await, before.0 + 1);
}
