//! Content that a killed process left in the bucket: staged objects that no row names, and multipart uploads, which
//! take space and which no list of objects shows.

use sqlx::PgConnection;

use crate::{
    error::StoreError,
    files::{
        object_metrics::Timing,
        objects::{BLOB, Objects, STAGED, refused},
    },
    sweep_batch::Batch,
};

/// Seconds that an object, or a multipart upload, may remain that is neither at its final key nor a part: longer than
/// any request takes. The object store's clock and the database's may differ by a few of these hours.
pub(crate) const STAGED_SECONDS: u64 = 24 * 3600;

/// The number of uploads aborted in one batch.
const SWEPT_AT_ONCE: usize = 100;

/// Returns the time by the database's clock before which content was stored that no request still writes, in seconds
/// since 1970. The clock of the process does not decide that: content in use would be deleted if it were fast.
async fn staged_before(db: &mut PgConnection) -> Result<i64, StoreError> {
    let seconds = STAGED_SECONDS as f64;
    let query = sqlx::query_scalar!(
        r#"select extract(epoch from now() - make_interval(secs => $1))::int8 as "before!""#,
        seconds
    );
    Ok(query.fetch_one(db).await?)
}

/// Deletes objects left by a process that ended in the middle of a request: completely uploaded, but neither parts nor
/// at their final key.
///
/// # Errors
/// [`StoreError::Object`], [`StoreError::Database`].
pub(crate) async fn sweep_staged(tx: &mut PgConnection, objects: &Objects) -> Result<Batch, StoreError> {
    let before = staged_before(tx).await?;
    let (mut gone, mut after) = (0, None);
    loop {
        let page = objects.staged(after.as_deref()).await?;
        let old: Vec<String> =
            page.iter().filter(|object| object.stored_at < before).map(|object| object.key.clone()).collect();
        let named = sqlx::query_scalar!("select object_key from upload_part where object_key = any($1)", &old)
            .fetch_all(&mut *tx)
            .await?;
        for key in old.iter().filter(|key| !named.contains(key)) {
            objects.delete(key).await?;
            gone += 1;
        }
        // The keys are in the order of their processes' clocks: after a recent object there are mostly more recent
        // ones, and an old one among them is found once the recent one is old.
        match page.last() {
            Some(last) if old.len() == page.len() => after = Some(last.key.clone()),
            _ => return Ok(Batch { gone, has_more: false }),
        }
    }
}

/// A multipart upload that is neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unfinished {
    key: String,
    id: String,
    /// The time of its creation by the object store's clock, in seconds since 1970.
    initiated: i64,
}

/// Aborts uploads that were created longer ago than any request takes, by the object store's clock and the database's.
///
/// # Errors
/// [`StoreError::Object`]: the list failed. [`StoreError::Database`].
pub(crate) async fn sweep_multipart(tx: &mut PgConnection, objects: &Objects) -> Result<Batch, StoreError> {
    let before = staged_before(tx).await?;
    let old = unfinished(objects).await?.into_iter().filter(|upload| upload.initiated < before);
    let mut gone = 0;
    for upload in old.take(SWEPT_AT_ONCE) {
        match abort(objects, &upload).await {
            Ok(()) => gone += 1,
            // It keeps no other upload from being aborted.
            Err(error) => {
                tracing::warn!(
                    key = upload.key,
                    error = &error as &dyn std::error::Error,
                    "a multipart upload could not be aborted; it is retried later"
                );
            }
        }
    }
    Ok(Batch { gone, has_more: gone == SWEPT_AT_ONCE as u64 })
}

/// Returns the first page of the uploads under Attune's keys, up to 1,000 by key; the next pass sees the others.
///
/// The list has no prefix: MinIO reads a prefix as one whole key, and without one returns the uploads that the
/// answering server knows (minio/minio, issues 11686 and 20989, "working as intended"). MinIO aborts the others itself,
/// by default after 24 hours (`api stale_uploads_expiry`).
async fn unfinished(objects: &Objects) -> Result<Vec<Unfinished>, StoreError> {
    let timing = Timing::of("list");
    let list = objects.client.list_multipart_uploads().bucket(&objects.bucket).send().await;
    timing.end(&list);
    let list = list.map_err(|e| refused("list the multipart uploads of", &objects.bucket, e))?;
    let all = list.uploads().iter().filter_map(|upload| {
        let (key, id) = (upload.key()?.to_owned(), upload.upload_id()?.to_owned());
        Some(Unfinished { key, id, initiated: upload.initiated()?.secs() })
    });
    Ok(all.filter(|upload| [STAGED, BLOB].iter().any(|prefix| upload.key.starts_with(prefix))).collect())
}

/// Aborts an upload; one that does not exist any more is no error.
async fn abort(objects: &Objects, upload: &Unfinished) -> Result<(), StoreError> {
    let Objects { client, bucket } = objects;
    let abort = client.abort_multipart_upload().bucket(bucket).key(&upload.key).upload_id(&upload.id);
    let timing = Timing::of("abort");
    let aborted = abort.send().await;
    timing.end(&aborted);
    match aborted {
        Ok(_) => Ok(()),
        Err(error) if error.as_service_error().is_some_and(|e| e.is_no_such_upload()) => Ok(()),
        Err(error) => Err(refused("abort the upload of", &upload.key, error)),
    }
}
