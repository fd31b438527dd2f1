//! The content that a run may name in its reports: what it was granted to upload. Content that its own project's rows
//! already name is not uploaded again. Content that the store has from another source is uploaded under a key of its
//! own, and read by the platform before the run may name it. So a run's token gives no access to content by its digest.

use std::collections::BTreeSet;

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    id::RunId,
    run::{Blob, BlobGrant},
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    digests::{sha256, texts},
    error::StoreError,
    files::{
        blob,
        objects::{Objects, blob_key, upload_key},
    },
    runs::run::Run,
    sweep_batch::Batch,
};

/// Content under a key of its own that the platform has yet to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The digest that it must have.
    pub sha256: Sha256,
    /// The length.
    pub bytes: Bytes,
    /// The object's key.
    pub key: String,
}

/// A grant, with the key of the upload.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The grant that is returned to the run.
    pub grant: BlobGrant,
    bytes: Bytes,
    staged_key: Option<String>,
}

/// Returns the digests among these that the run's job, project or base model already names, or that the run has proved
/// to have. Keeps all of them from being swept.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn own(tx: &mut PgConnection, run: &Run, wanted: &[Blob]) -> Result<BTreeSet<Sha256>, StoreError> {
    let digests: Vec<Sha256> = wanted.iter().map(|blob| blob.sha256).collect();
    blob::announce(tx, &digests).await?;
    let mut own = BTreeSet::new();
    for blob in wanted {
        let files = json!([{ "sha256": blob.sha256, "bytes": blob.bytes }]);
        let named = sqlx::query_scalar!(
            r#"select (exists (select from run_blob where run_id = $1 and sha256 = $3 and staged_key is null)
                 or exists (select from base_model_file f join job using (base_model_id)
                     where job_id = $2 and f.sha256 = $3 and f.bytes = $4)
                 or exists (select from checkpoint c join job j using (job_id) join job mine using (project_id)
                     where mine.job_id = $2 and c.files @> $5)
                 or exists (select from adapter_version v join job mine using (project_id)
                     where mine.job_id = $2 and v.deleted_at is null and v.files @> $5)) as "named!""#,
            run.run_id.uuid(),
            run.job_id.uuid(),
            blob.sha256.to_string(),
            blob.bytes.to_i64(),
            files,
        )
        .fetch_one(&mut *tx)
        .await?;
        if named {
            own.insert(blob.sha256);
        }
    }
    Ok(own)
}

/// Returns for each blob an upload URL, if the run has to upload it. `staged` are the run's earlier uploads under keys
/// of their own.
///
/// # Errors
/// [`StoreError::Object`].
pub async fn grant(
    objects: &Objects,
    own: &BTreeSet<Sha256>,
    staged: &[Staged],
    wanted: &[Blob],
) -> Result<Vec<Granted>, StoreError> {
    let mut granted = Vec::with_capacity(wanted.len());
    for blob in wanted {
        let key = blob_key(blob.sha256);
        let there = objects.head(&key).await?;
        let (put, staged_key) = match there {
            Some(bytes) if own.contains(&blob.sha256) && bytes == blob.bytes => (None, None),
            Some(_) => {
                let earlier = staged.iter().find(|staged| staged.sha256 == blob.sha256);
                let staged = earlier.map_or_else(upload_key, |staged| staged.key.clone());
                (Some(objects.presign_put(&staged).await?), Some(staged))
            }
            None => (Some(objects.presign_put(&key).await?), None),
        };
        let grant = BlobGrant { sha256: blob.sha256, url: put };
        granted.push(Granted { grant, bytes: blob.bytes, staged_key });
    }
    Ok(granted)
}

/// Records the grants.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn record(tx: &mut PgConnection, run: RunId, granted: &[Granted]) -> Result<(), StoreError> {
    for Granted { grant, bytes, staged_key } in granted {
        sqlx::query!(
            "insert into run_blob (run_id, sha256, bytes, staged_key) values ($1, $2, $3, $4)
             on conflict (run_id, sha256) do update set bytes = excluded.bytes, staged_key = excluded.staged_key",
            run.uuid(),
            grant.sha256.to_string(),
            bytes.to_i64(),
            staged_key.as_deref(),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Returns those of a run's files that the platform must read before the run may name them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn staged(db: &mut PgConnection, run: RunId, digests: &[Sha256]) -> Result<Vec<Staged>, StoreError> {
    let rows = sqlx::query!(
        r#"select sha256, bytes, staged_key as "key!" from run_blob
           where run_id = $1 and sha256 = any($2) and staged_key is not null"#,
        run.uuid(),
        &texts(digests),
    )
    .fetch_all(db)
    .await?;
    let staged = rows.into_iter().map(|row| {
        let sha256 = sha256("run_blob.sha256", &row.sha256)?;
        Ok(Staged { sha256, bytes: Bytes::from_i64(row.bytes), key: row.key })
    });
    staged.collect()
}

/// Records that the run has uploaded this content, and may name it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn proved(tx: &mut PgConnection, run: RunId, sha256: Sha256) -> Result<(), StoreError> {
    sqlx::query!(
        "update run_blob set staged_key = null where run_id = $1 and sha256 = $2",
        run.uuid(),
        sha256.to_string(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Refuses a report that names content which the run has not uploaded.
///
/// # Errors
/// [`StoreError::NotGranted`], [`StoreError::Database`].
pub(crate) async fn check(db: &mut PgConnection, run: RunId, files: &[Blob]) -> Result<(), StoreError> {
    let digests: Vec<Sha256> = files.iter().map(|file| file.sha256).collect();
    let rows = sqlx::query!(
        "select sha256, bytes from run_blob where run_id = $1 and sha256 = any($2) and staged_key is null",
        run.uuid(),
        &texts(&digests),
    )
    .fetch_all(db)
    .await?;
    let put = rows.into_iter().map(|row| Ok((sha256("run_blob.sha256", &row.sha256)?, Bytes::from_i64(row.bytes))));
    let put = put.collect::<Result<BTreeSet<_>, StoreError>>()?;
    match files.iter().find(|file| !put.contains(&(file.sha256, file.bytes))) {
        Some(file) => Err(StoreError::NotGranted(file.name.clone())),
        None => Ok(()),
    }
}

/// Deletes the grants of ended runs, and up to 100 objects that they left under keys of their own.
///
/// # Errors
/// [`StoreError::Object`], [`StoreError::Database`].
pub async fn sweep(tx: &mut PgConnection, objects: &Objects) -> Result<Batch, StoreError> {
    let staged = sqlx::query!(
        r#"select run_id, sha256, staged_key as "key!" from run_blob join run using (run_id)
           where run.state = 'ended' and staged_key is not null limit 100 for update of run_blob skip locked"#,
    )
    .fetch_all(&mut *tx)
    .await?;
    let has_more = staged.len() >= 100;
    for row in staged {
        objects.delete(&row.key).await?;
        proved(tx, RunId::new(row.run_id), sha256("run_blob.sha256", &row.sha256)?).await?;
    }
    let gone = sqlx::query!(
        "delete from run_blob using run
         where run.run_id = run_blob.run_id and run.state = 'ended' and staged_key is null",
    )
    .execute(tx)
    .await?;
    Ok(Batch { gone: gone.rows_affected(), has_more })
}
