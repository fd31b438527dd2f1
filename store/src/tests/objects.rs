//! The object store's client against an S3 server over a folder, and the life of content.

use std::path::Path;

use attune_domain::bytes::Bytes;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use sqlx::PgPool;

use crate::{
    blob,
    config::ObjectStoreConfig,
    error::StoreError,
    objects::{Objects, blob_key, upload_key},
    report,
    testing::{self, age_loose_blobs, checkpointed, claimed_run, queued_job, seed, started},
};

/// A server on a free port; it goes with the test's runtime.
pub(super) async fn server(folder: &Path) -> Objects {
    let files = s3s_fs::FileSystem::new(folder).unwrap();
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = service.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let builder = Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    let config = ObjectStoreConfig {
        endpoint: Some(endpoint),
        region: "us-east-1".into(),
        bucket: "attune".into(),
        access_key_id: "key".into(),
        secret_access_key: "secret".to_owned().into(),
        path_style: true,
    };
    let objects = Objects::new(&config);
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
    // Three parts, the last one short; and one that fits in a single piece.
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

    // A trainer asks where to put five, puts them, names four, and the oldest is let go of; the fifth is never named.
    let grants = blob::grant(&mut conn, &objects, &blobs).await.unwrap();
    assert!(grants.iter().all(|grant| grant.url.is_some()));
    for blob in &blobs {
        objects.put(&blob_key(&blob.sha256), "0123456789").await.unwrap();
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
        left.push(objects.head(&blob_key(&blob.sha256)).await.unwrap().is_some());
    }
    assert_eq!(left, [false, true, true, true, false]);
}
