//! The result file of a job that has just succeeded, in the transaction that publishes its adapter: whoever sees the job
//! succeeded sees the file.

use attune_domain::{bytes::Bytes, id::JobId, job::JobState};
use attune_store::{base_model::hex, blob, job, objects::blob_key, results};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::{app::App, error::ApiError};

/// Writes the metrics of a job that has succeeded into a file, if it has none yet.
///
/// # Errors
/// [`ApiError::StorageRefused`]: the trainer says its last word again later. [`ApiError::Internal`].
pub async fn keep(app: &App, tx: &mut PgConnection, id: JobId) -> Result<(), ApiError> {
    let job = job::load(tx, id).await?;
    if job.state != JobState::Succeeded || job.result_file_id.is_some() {
        return Ok(());
    }
    let text = results::csv(tx, id).await?;
    let sha256 = hex(&Sha256::digest(text.as_bytes()));
    // Announced for itself: if this transaction comes to nothing, the sweep finds the content.
    let mut announcing = app.platform().await?;
    blob::announce(&mut announcing, std::slice::from_ref(&sha256)).await?;
    announcing.commit().await?;
    let bytes = Bytes(text.len() as u64);
    let put = app.objects.put(&blob_key(&sha256), text).await;
    put.map_err(|cause| ApiError::StorageRefused { what: "job's results", cause })?;
    results::name(tx, id, &sha256, bytes).await?;
    Ok(())
}
