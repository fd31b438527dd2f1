//! The sweep: expired rows and objects are deleted in one pass, the longest due first, even if some fail.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

use sqlx::PgPool;

use super::objects::server;
use crate::{
    files::{
        blob,
        leftovers::STAGED_SECONDS,
        objects::{Objects, blob_key, upload_key},
    },
    jobs::job,
    runs::report,
    sweep::{self, KIND_SECONDS, Swept},
    testing::{self, checkpointed, claimed_run, queued_job, seed, started, unreachable_objects},
};

const PATIENCE: Duration = Duration::from_secs(KIND_SECONDS);

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}

/// Inserts `loose_blob` entries of nonexistent content, each due since as many seconds as its number.
async fn made_up(pool: &PgPool, notes: i64) {
    sqlx::query(
        "insert into loose_blob (sha256, delete_after)
         select encode(sha256(n::text::bytea), 'hex'), now() - make_interval(secs => n) from generate_series(1, $1) n",
    )
    .bind(notes)
    .execute(pool)
    .await
    .unwrap();
}

#[sqlx::test(migrations = false)]
async fn attack_a14_a_pass_ends_when_nothing_is_due(pool: PgPool) {
    seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    made_up(&pool, 350).await;
    sqlx::query(
        "update loose_blob set delete_after = now() + interval '1 hour'
         where ctid in (select ctid from loose_blob limit 3)",
    )
    .execute(&pool)
    .await
    .unwrap();
    let swept = sweep::pass(&pool, &objects, PATIENCE).await;
    assert_eq!(swept, [Swept { kind: "blobs", gone: 347 }]);
    assert_eq!(count(&pool, "select count(*) from loose_blob").await, 3);
}

#[sqlx::test(migrations = false)]
async fn limit_of_a_kind_s_time_leaves_what_was_due_last_to_the_next_pass(pool: PgPool) {
    seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    made_up(&pool, 60).await;
    let swept = sweep::pass(&pool, &objects, Duration::ZERO).await;
    assert_eq!(swept, [Swept { kind: "blobs", gone: 25 }], "one batch, however little time there is");
    let oldest = "select extract(epoch from now() - min(delete_after))::int8 from loose_blob";
    assert!((35..50).contains(&count(&pool, oldest).await), "the longest due went first");
}

#[sqlx::test(migrations = false)]
async fn content_that_cannot_be_deleted_keeps_nothing_else_from_being_swept(pool: PgPool) {
    seed(&pool).await.unwrap();
    made_up(&pool, 2).await;
    sqlx::query(
        "insert into outbox (event_id, project_id, type, data, created_at)
         select gen_random_uuid(), project_id, 'batch.completed', '{}', now() - interval '31 days' from project",
    )
    .execute(&pool)
    .await
    .unwrap();
    let swept = sweep::pass(&pool, &unreachable_objects(), PATIENCE).await;
    assert_eq!(swept, [Swept { kind: "events", gone: 1 }], "never relayed, and old all the same");
    assert_eq!(count(&pool, "select count(*) from loose_blob where delete_after > now()").await, 2, "later");
}

/// Makes a file of the object store an hour older than content that is in use can be.
fn age(path: &Path) {
    let old = SystemTime::now() - Duration::from_secs(STAGED_SECONDS + 3600);
    File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
}

async fn staged(objects: &Objects, key: &str) -> String {
    objects.put(key, "part").await.unwrap();
    key.to_owned()
}

#[sqlx::test(migrations = false)]
async fn limit_of_a_staged_object_s_time_removes_what_a_dead_process_left(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    let (left, part) = (staged(&objects, &upload_key()).await, staged(&objects, &upload_key()).await);
    for key in [&left, &part] {
        age(&folder.path().join("attune").join(key));
    }
    // The clock of the process that chose this key was years behind.
    let young = staged(&objects, &format!("upload/{:032x}", 7_u128 << 76)).await;
    sqlx::query(
        "with pending as (insert into upload (upload_id, project_id, filename, purpose, bytes)
             values (gen_random_uuid(), $1, 'a', 'user_data', 4) returning upload_id)
         insert into upload_part (upload_part_id, upload_id, project_id, bytes, object_key)
             select gen_random_uuid(), upload_id, $1, 4, $2 from pending",
    )
    .bind(seed.project_id.uuid())
    .bind(&part)
    .execute(&pool)
    .await
    .unwrap();
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, [Swept { kind: "staged objects", gone: 1 }]);
    for (key, stays) in [(left, false), (part, true), (young, true)] {
        assert_eq!(objects.head(&key).await.unwrap().is_some(), stays, "{key}");
    }
}

/// Returns the files of unfinished multipart uploads.
fn files_of_uploads(folder: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file() && path.to_str().unwrap().contains(".upload")).collect()
}

#[sqlx::test(migrations = false)]
async fn limit_of_an_unfinished_upload_s_time_aborts_what_a_dead_process_left(pool: PgPool) {
    seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    // Six MiB: one part is stored, the rest is not. The process is killed, so that nothing aborts the upload.
    let mut dead = objects.upload(&upload_key());
    dead.write(&vec![7; 6 << 20]).await.unwrap();
    std::mem::forget(dead);
    assert_eq!(files_of_uploads(folder.path()).len(), 3, "its ID, its metadata and its part");
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, [], "it may still be in progress");
    files_of_uploads(folder.path()).iter().for_each(|path| age(path));
    let mut living = objects.upload(&upload_key());
    living.write(&vec![7; 6 << 20]).await.unwrap();
    // An upload of another program's is left alone.
    let mut foreign = objects.upload("other");
    foreign.write(&vec![7; 6 << 20]).await.unwrap();
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, [Swept { kind: "multipart uploads", gone: 1 }]);
    assert_eq!(files_of_uploads(folder.path()).len(), 6);
    living.finish().await.unwrap();
    foreign.abort().await;
    assert!(files_of_uploads(folder.path()).is_empty());
}

#[sqlx::test(migrations = false)]
async fn limit_of_abandoned_checkpoints_counts_from_the_end_of_their_job(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    let mut conn = pool.acquire().await.unwrap();
    let job = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, job).await.unwrap();
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &[started(), checkpointed(1, '1')])).await.unwrap();
    let blob = testing::blob("state", '1');
    objects.put(&blob_key(blob.sha256), "0123456789").await.unwrap();
    job::cancel(&mut conn, seed.project_id, job).await.unwrap();
    sqlx::query("update job set state = 'cancelled', finished_at = now() - interval '6 days'")
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("delete from loose_blob").execute(&pool).await.unwrap();
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, []);
    sqlx::query("update job set finished_at = now() - interval '7 days 1 minute'").execute(&pool).await.unwrap();
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, [Swept { kind: "checkpoints", gone: 1 }]);
    testing::age_loose_blobs(&mut conn).await.unwrap();
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, [Swept { kind: "blobs", gone: 1 }]);
    assert_eq!(objects.head(&blob_key(blob.sha256)).await.unwrap(), None);
}

#[sqlx::test(migrations = false)]
async fn limit_of_old_uploads_forgets_them_with_their_parts(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    for (status, days) in [("cancelled", 31), ("cancelled", 29), ("pending", 31)] {
        sqlx::query(
            "insert into upload (upload_id, project_id, filename, purpose, bytes, status, created_at, expires_at)
             values (gen_random_uuid(), $1, 'a', 'user_data', 4, $2, now() - make_interval(days => $3),
                 now() - make_interval(days => $3))",
        )
        .bind(seed.project_id.uuid())
        .bind(status)
        .bind(days)
        .execute(&pool)
        .await
        .unwrap();
    }
    // The pending one is overdue, and so counts as ended.
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, [Swept { kind: "uploads", gone: 2 }]);
    assert_eq!(count(&pool, "select count(*) from upload").await, 1);
}

/// An entry that is announced again while it is due is kept.
#[sqlx::test(migrations = false)]
async fn what_is_announced_again_is_not_swept(pool: PgPool) {
    seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    made_up(&pool, 1).await;
    let digest: String = sqlx::query_scalar("select sha256 from loose_blob").fetch_one(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    blob::announce(&mut conn, &[digest.parse().unwrap()]).await.unwrap();
    assert_eq!(sweep::pass(&pool, &objects, PATIENCE).await, []);
}
