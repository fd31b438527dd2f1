//! The content that a project may name by its digest: what it has uploaded itself recently, and the files of the base
//! models that it may use. Other projects' content counts as missing, whatever the object store holds.

use std::collections::BTreeMap;

use attune_domain::{bytes::Bytes, digest::Sha256, id::ProjectId};
use sqlx::PgConnection;

use crate::{
    digests::{sha256, texts},
    error::StoreError,
    files::blob,
    sweep_batch::Batch,
};

/// Seconds that a project may name content that it has uploaded: as long as content without a row is kept.
const NAMEABLE_SECONDS: f64 = 7200.0;

/// Records that the project has uploaded this content, and keeps the content until it can be named.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn record(tx: &mut PgConnection, project: ProjectId, sha256: Sha256, bytes: Bytes) -> Result<(), StoreError> {
    blob::announce(tx, &[sha256]).await?;
    sqlx::query!(
        "insert into project_blob (project_id, sha256, bytes, expires_at)
         values ($1, $2, $3, now() + make_interval(secs => $4))
         on conflict (project_id, sha256) do update set expires_at = excluded.expires_at",
        project.uuid(),
        sha256.to_string(),
        bytes.to_i64(),
        NAMEABLE_SECONDS,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the lengths of those of these digests that the project may name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn nameable(
    db: &mut PgConnection,
    project: ProjectId,
    digests: &[Sha256],
) -> Result<BTreeMap<Sha256, Bytes>, StoreError> {
    let rows = sqlx::query!(
        r#"select sha256 as "sha256!", bytes as "bytes!" from project_blob
           where project_id = $1 and sha256 = any($2) and expires_at > now()
           union select sha256, bytes from base_model_file join base_model b using (base_model_id)
               where sha256 = any($2) and b.deleted_at is null and (b.project_id = $1 or b.project_id is null)"#,
        project.uuid(),
        &texts(digests),
    )
    .fetch_all(db)
    .await?;
    let found =
        rows.into_iter().map(|row| Ok((sha256("project_blob.sha256", &row.sha256)?, Bytes::from_i64(row.bytes))));
    found.collect()
}

/// As [`nameable`], and keeps that content for another two hours, so that it can be named.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn hold(
    tx: &mut PgConnection,
    project: ProjectId,
    digests: &[Sha256],
) -> Result<BTreeMap<Sha256, Bytes>, StoreError> {
    let found = nameable(tx, project, digests).await?;
    let held: Vec<Sha256> = found.keys().copied().collect();
    blob::announce(tx, &held).await?;
    sqlx::query!(
        "update project_blob set expires_at = now() + make_interval(secs => $3)
         where project_id = $1 and sha256 = any($2)",
        project.uuid(),
        &texts(&held),
        NAMEABLE_SECONDS,
    )
    .execute(tx)
    .await?;
    Ok(found)
}

/// Deletes expired records. For the platform's own transactions.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sweep(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let gone = sqlx::query!("delete from project_blob where expires_at <= now()").execute(tx).await?;
    Ok(Batch { gone: gone.rows_affected(), has_more: false })
}
