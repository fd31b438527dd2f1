//! The claim on an upload whose parts are being joined.

use attune_domain::{
    bytes::Bytes,
    id::{FileId, UploadId},
};
use sqlx::{PgConnection, PgPool};

use crate::{
    error::StoreError,
    files::upload::{self, NewUpload},
    testing::{self, seed},
};

async fn pending(pool: &PgPool, conn: &mut PgConnection) -> UploadId {
    let project = seed(pool).await.unwrap().project_id;
    let new = NewUpload {
        filename: "rows.bin".into(),
        purpose: "user_data".into(),
        bytes: Bytes(4),
        file_expires_after_seconds: None,
    };
    upload::insert(conn, project, new).await.unwrap().upload_id
}

async fn seconds_pass(conn: &mut PgConnection, seconds: i32) {
    sqlx::query("update upload set claimed_until = claimed_until - make_interval(secs => $1)")
        .bind(seconds)
        .execute(conn)
        .await
        .unwrap();
}

#[sqlx::test(migrations = false)]
async fn attack_a12_a_long_join_keeps_its_claim_by_renewing_it(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = pending(&pool, &mut conn).await;
    let claim = upload::claim(&mut conn, id).await.unwrap().unwrap();
    for minute in 0..5 {
        seconds_pass(&mut conn, 50).await;
        assert!(upload::is_claimed(&mut conn, id).await.unwrap(), "minute {minute}");
        assert_eq!(upload::claim(&mut conn, id).await.unwrap(), None, "minute {minute}");
        upload::renew(&mut conn, claim).await.unwrap();
    }
}

#[sqlx::test(migrations = false)]
async fn attack_a12_a_join_that_was_paused_beyond_its_claim_completes_nothing(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = pending(&pool, &mut conn).await;
    let paused = upload::claim(&mut conn, id).await.unwrap().unwrap();
    testing::age_claims(&mut conn).await.unwrap();
    assert!(!upload::is_claimed(&mut conn, id).await.unwrap());
    let second = upload::claim(&mut conn, id).await.unwrap().unwrap();
    assert!(matches!(upload::renew(&mut conn, paused).await, Err(StoreError::Stale)));
    let file = FileId::new(uuid::Uuid::now_v7());
    assert!(matches!(upload::complete(&mut conn, paused, file).await, Err(StoreError::Stale)));
    // Nor does it free the upload for a third process.
    upload::release(&mut conn, paused).await.unwrap();
    assert!(upload::is_claimed(&mut conn, id).await.unwrap());
    upload::renew(&mut conn, second).await.unwrap();
}
