//! Content in the object store: where a trainer may upload it, and when it is deleted.
//!
//! The same content may belong to several rows (the last checkpoint's factors are the published ones), so a row that
//! drops content only adds it to `loose_blob`, and so does a transaction that is about to upload some. `sweep`
//! deletes content that no row names once its entry is old enough. Both lock the entry, so content that was just
//! granted is not deleted.

use attune_domain::{
    digest::Sha256,
    run::{Blob, BlobGrant},
};
use sqlx::PgConnection;

use crate::{
    digests::{sha256, texts},
    error::StoreError,
    files::objects::{Objects, blob_key},
    sweep_batch::Batch,
};

/// Seconds that dropped content is kept: a run that started from it may still be reading.
const AFTER_DISCARD_SECONDS: f64 = 600.0;

/// Seconds that announced content without a row is kept: longer than a presigned URL is valid.
const AFTER_GRANT_SECONDS: f64 = 7200.0;

/// Records that a row dropped these blobs.
pub(crate) async fn discard(tx: &mut PgConnection, blobs: &[Blob]) -> Result<(), StoreError> {
    let digests: Vec<Sha256> = blobs.iter().map(|blob| blob.sha256).collect();
    discard_digests(tx, &digests).await
}

/// Records that a row dropped content with these digests.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn discard_digests(tx: &mut PgConnection, digests: &[Sha256]) -> Result<(), StoreError> {
    loosen(tx, digests, AFTER_DISCARD_SECONDS).await
}

/// Records that content with these digests is about to be uploaded, and that a row will name it soon. It is not deleted
/// before then; if no row ever names it, it is deleted two hours later.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn announce(tx: &mut PgConnection, digests: &[Sha256]) -> Result<(), StoreError> {
    loosen(tx, digests, AFTER_GRANT_SECONDS).await
}

async fn loosen(tx: &mut PgConnection, digests: &[Sha256], seconds: f64) -> Result<(), StoreError> {
    let digests = texts(digests);
    // In a fixed order, so that two transactions cannot deadlock.
    sqlx::query!(
        "insert into loose_blob (sha256, delete_after)
         select distinct digest, now() + make_interval(secs => $2) from unnest($1::text[]) digest order by digest
         on conflict (sha256) do update set delete_after = greatest(loose_blob.delete_after, excluded.delete_after)",
        &digests,
        seconds,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns for each blob a URL to upload it to, or that it is already stored. The caller commits before it answers.
///
/// # Errors
/// [`StoreError::Object`], [`StoreError::Database`].
pub async fn grant(tx: &mut PgConnection, objects: &Objects, wanted: &[Blob]) -> Result<Vec<BlobGrant>, StoreError> {
    let digests: Vec<Sha256> = wanted.iter().map(|blob| blob.sha256).collect();
    announce(tx, &digests).await?;
    let mut grants = Vec::with_capacity(wanted.len());
    for blob in wanted {
        let key = blob_key(blob.sha256);
        let there = objects.head(&key).await?.is_some_and(|bytes| bytes == blob.bytes);
        let url = if there { None } else { Some(objects.presign_put(&key).await?) };
        grants.push(BlobGrant { sha256: blob.sha256, url });
    }
    Ok(grants)
}

/// The number of entries checked in one transaction: a transaction that announces one of them waits until it ends.
const SWEPT_AT_ONCE: i64 = 25;

/// Deletes expired content that no row names, the longest due first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sweep(tx: &mut PgConnection, objects: &Objects) -> Result<Batch, StoreError> {
    let old = sqlx::query_scalar!(
        "select sha256 from loose_blob where delete_after < now() order by delete_after limit $1
         for update skip locked",
        SWEPT_AT_ONCE,
    )
    .fetch_all(&mut *tx)
    .await?;
    let (mut gone, has_more) = (0, old.len() as i64 >= SWEPT_AT_ONCE);
    for text in old {
        let sha256 = sha256("loose_blob.sha256", &text)?;
        if !is_named(tx, sha256).await? {
            if let Err(error) = objects.delete(&blob_key(sha256)).await {
                // A failure must not block the entries after it.
                tracing::warn!(%error, "content could not be deleted; it is retried later");
                discard_digests(tx, &[sha256]).await?;
                continue;
            }
            gone += 1;
        }
        sqlx::query!("delete from loose_blob where sha256 = $1", text).execute(&mut *tx).await?;
    }
    Ok(Batch { gone, has_more })
}

async fn is_named(conn: &mut PgConnection, sha256: Sha256) -> Result<bool, StoreError> {
    let files = serde_json::json!([{ "sha256": sha256 }]);
    Ok(sqlx::query_scalar!(
        r#"select (exists (select from checkpoint where files @> $2)
             or exists (select from adapter_version where files @> $2 and deleted_at is null)
             or exists (select from file where (sha256 = $1 or rows_sha256 = $1) and (deleted_at is null or exists (
                 select from job where state not in ('succeeded', 'failed', 'cancelled')
                     and (training_file_id = file_id or validation_file_id = file_id)) or exists (
                 select from batch where state in ('validating', 'in_progress', 'finalizing', 'cancelling')
                     and input_file_id = file_id)))
             or exists (select from base_model_file where sha256 = $1)) as "named!""#,
        sha256.to_string(),
        files,
    )
    .fetch_one(conn)
    .await?)
}
