//! Tokens of trainers and replicas: what anybody may try, unauthenticated, must not cost a scan of a table.

use sqlx::PgPool;

use crate::{error::StoreError, replica, run, testing::seed};

#[sqlx::test(migrations = false)]
async fn attack_a_guessed_token_is_looked_up_by_an_index(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    // Small tables are scanned otherwise, whatever indexes they have.
    sqlx::query("set local enable_seqscan = off").execute(&mut *tx).await.unwrap();
    assert!(matches!(run::by_token(&mut tx, "guess").await, Err(StoreError::NotFound("run"))));
    assert!(matches!(replica::by_token(&mut tx, "guess").await, Err(StoreError::NotFound("replica"))));
    for table in ["run", "replica"] {
        let scans: i64 = sqlx::query_scalar("select pg_stat_get_xact_numscans($1::text::regclass::oid)")
            .bind(table)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(scans, 0, "sequential scans of {table}");
    }
}
