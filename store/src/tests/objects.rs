//! The object store's client against an S3 server over a folder, and the lifetime of content.

use std::path::Path;

use attune_domain::bytes::Bytes;
use attune_tests::object_store;
use sqlx::PgPool;

use crate::{
    error::StoreError,
    files::{
        blob,
        objects::{Objects, blob_key, upload_key},
        project_blob,
    },
    runs::{report, run_blob},
    testing::{self, age_loose_blobs, checkpointed, claimed_run, queued_job, seed, started},
};

/// Starts a server on a free port; it ends with the test's runtime.
pub(super) async fn server(folder: &Path) -> Objects {
    let objects = testing::objects_at(&object_store::serve(folder).await.unwrap());
    objects.ensure_bucket().await.unwrap();
    objects.ensure_bucket().await.unwrap();
    objects
}

#[tokio::test]
async fn objects_come_back_as_they_were_put() {
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    assert_eq!(objects.head("blob/x").await.unwrap(), None);
    assert!(matches!(objects.get("blob/x").await, Err(StoreError::NotFound(_))));
    objects.put("blob/x", "hello").await.unwrap();
    assert_eq!(objects.head("blob/x").await.unwrap(), Some(Bytes(5)));
    assert_eq!(objects.get_whole("blob/x").await.unwrap(), "hello");
    assert!(objects.presign_get("blob/x").await.unwrap().contains("X-Amz-Signature"));
    objects.delete("blob/x").await.unwrap();
    objects.delete("blob/x").await.unwrap();
    assert_eq!(objects.head("blob/x").await.unwrap(), None);
}

#[tokio::test]
async fn an_upload_is_seen_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    // Three parts, the last one short; and one that fits in a single request.
    let content: Vec<u8> = (0..20_000_000_u32).map(|i| (i / 251) as u8).collect();
    for length in [content.len(), 100] {
        let key = upload_key();
        let mut upload = objects.upload(&key);
        for piece in content[..length].chunks(1_000_003) {
            upload.write(piece).await.unwrap();
        }
        assert_eq!(objects.head(&key).await.unwrap(), None, "not finished");
        upload.finish().await.unwrap();
        objects.rename(&key, "blob/whole").await.unwrap();
        assert_eq!(objects.head(&key).await.unwrap(), None);
        assert!(objects.get_whole("blob/whole").await.unwrap() == content[..length]);
    }
    let mut upload = objects.upload("blob/aborted");
    upload.write(&content).await.unwrap();
    upload.abort().await;
    assert_eq!(objects.head("blob/aborted").await.unwrap(), None);
}

#[sqlx::test(migrations = false)]
async fn content_goes_when_no_row_names_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    let mut conn = pool.acquire().await.unwrap();
    let blobs = ['1', '2', '3', '4', '9'].map(|digit| testing::blob("state", digit));

    // A trainer requests grants for five blobs, uploads them and names four; the oldest is dropped, the fifth is never
    // named.
    let grants = blob::grant(&mut conn, &objects, &blobs).await.unwrap();
    assert!(grants.iter().all(|grant| grant.url.is_some()));
    for blob in &blobs {
        objects.put(&blob_key(blob.sha256), "0123456789").await.unwrap();
    }
    let again = blob::grant(&mut conn, &objects, &blobs).await.unwrap();
    assert!(again.iter().all(|grant| grant.url.is_none()), "they are there");
    let job = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, job).await.unwrap();
    let events = [started(), checkpointed(1, '1'), checkpointed(2, '2'), checkpointed(3, '3'), checkpointed(4, '4')];
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &events)).await.unwrap();

    assert_eq!(blob::sweep(&mut conn, &objects).await.unwrap().gone, 0, "their time is not up");
    age_loose_blobs(&mut conn).await.unwrap();
    assert_eq!(blob::sweep(&mut conn, &objects).await.unwrap().gone, 2);
    let mut left = Vec::new();
    for blob in &blobs {
        left.push(objects.head(&blob_key(blob.sha256)).await.unwrap().is_some());
    }
    assert_eq!(left, [false, true, true, true, false]);
}

#[sqlx::test(migrations = false)]
async fn attack_a01_a_run_names_only_content_that_it_has_put(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objects = server(folder.path()).await;
    let mut conn = pool.acquire().await.unwrap();
    let job = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, job).await.unwrap();
    sqlx::query("delete from run_blob").execute(&mut *conn).await.unwrap();
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &[started()])).await.unwrap();
    let foreign = testing::blob("state", 'e');
    objects.put(&blob_key(foreign.sha256), "0123456789").await.unwrap();
    let named = testing::report(&run, 1, &[checkpointed(1, 'e')]);
    let take = async |conn: &mut sqlx::PgConnection| {
        let mut tx = sqlx::Connection::begin(conn).await.unwrap();
        let taken = report::take(&mut tx, run.run_id, &named).await;
        if taken.is_ok() {
            tx.commit().await.unwrap();
        }
        taken
    };
    assert!(matches!(take(&mut conn).await, Err(StoreError::NotGranted(_))), "never asked for");

    // Content that the store has from another source is uploaded under another key, and may be named once it was read
    // there.
    let wanted = [foreign.clone(), testing::blob("state", '7')];
    let grant = async |conn: &mut sqlx::PgConnection| {
        let own = run_blob::own(conn, &run, &wanted).await.unwrap();
        let digests = wanted.clone().map(|blob| blob.sha256);
        let staged = run_blob::staged(conn, run.run_id, &digests).await.unwrap();
        let granted = run_blob::grant(&objects, &own, &staged, &wanted).await.unwrap();
        run_blob::record(conn, run.run_id, &granted).await.unwrap();
        granted.into_iter().map(|granted| granted.grant.url).collect::<Vec<_>>()
    };
    let urls = grant(&mut conn).await;
    assert!(urls[0].as_ref().is_some_and(|url| url.contains("/upload/")), "{urls:?}");
    assert!(urls[1].as_ref().is_some_and(|url| url.contains(&wanted[1].sha256.to_string())), "{urls:?}");
    assert!(matches!(take(&mut conn).await, Err(StoreError::NotGranted(_))), "granted, not put");
    let key = |staged: Vec<run_blob::Staged>| staged.into_iter().map(|staged| staged.key).collect::<Vec<_>>();
    let first = key(run_blob::staged(&mut conn, run.run_id, &[foreign.sha256]).await.unwrap());
    grant(&mut conn).await;
    let again = key(run_blob::staged(&mut conn, run.run_id, &[foreign.sha256]).await.unwrap());
    assert_eq!((first.len(), &first), (1, &again), "who asks again is told the same place");
    run_blob::proved(&mut conn, run.run_id, foreign.sha256).await.unwrap();
    take(&mut conn).await.unwrap();
    assert_eq!(grant(&mut conn).await[0], None, "it is its own now");
    let kept: i64 = sqlx::query_scalar("select count(*) from checkpoint").fetch_one(&mut *conn).await.unwrap();
    assert_eq!(kept, 1);

    // A run's grants end with the run.
    objects.put(&first[0], "left").await.unwrap();
    sqlx::query("update run_blob set staged_key = $1").bind(&first[0]).execute(&mut *conn).await.unwrap();
    assert_eq!(run_blob::sweep(&mut conn, &objects).await.unwrap().gone, 0, "it goes on");
    sqlx::query("update run set state = 'ended'").execute(&mut *conn).await.unwrap();
    assert_eq!(run_blob::sweep(&mut conn, &objects).await.unwrap().gone, 2);
    assert_eq!(objects.head(&first[0]).await.unwrap(), None);
}

#[sqlx::test(migrations = false)]
async fn limit_what_a_project_has_put_can_be_named_for_two_hours(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let digest = testing::sha256('d');
    let digests = &[digest];
    project_blob::record(&mut conn, seed.project_id, digest, Bytes(5)).await.unwrap();
    let found = project_blob::nameable(&mut conn, seed.project_id, digests).await.unwrap();
    assert_eq!(found.get(&digest), Some(&Bytes(5)));
    let left: f64 = sqlx::query_scalar("select extract(epoch from expires_at - now())::float8 from project_blob")
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    assert!((7000.0..7201.0).contains(&left), "{left}");
    sqlx::query("update project_blob set expires_at = now() - interval '1 second'").execute(&mut *conn).await.unwrap();
    assert!(project_blob::hold(&mut conn, seed.project_id, digests).await.unwrap().is_empty());
    assert_eq!(project_blob::sweep(&mut conn).await.unwrap().gone, 1);
}
