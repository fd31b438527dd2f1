//! The result file of a succeeded job, in the transaction that publishes its adapter: a reader that sees the job as
//! succeeded also sees the file.

use attune_domain::{bytes::Bytes, digest::Sha256, id::JobId, job::JobState};
use attune_process::failpoint::FailPoint;
use attune_store::{
    files::{blob, objects::blob_key},
    jobs::job::{self, Job},
    runs::results,
};
use sha2::Digest;
use sqlx::PgConnection;

use crate::{app::App, error::ApiError};

/// The content of a job's result file.
pub struct Results {
    sha256: Sha256,
    text: String,
}

/// Returns the results of a job that succeeds in this transaction, if no file holds them yet.
///
/// # Errors
/// [`ApiError::Internal`].
pub async fn of(tx: &mut PgConnection, id: JobId) -> Result<Option<Results>, ApiError> {
    let job = job::load(tx, id).await?;
    if !are_wanted(&job) {
        return Ok(None);
    }
    let text = results::csv(tx, job.project_id, id).await?;
    let sha256 = Sha256::from_digest(sha2::Sha256::digest(text.as_bytes()).into());
    Ok(Some(Results { sha256, text }))
}

fn are_wanted(job: &Job) -> bool {
    job.state == JobState::Succeeded && job.result_file_id.is_none()
}

impl Results {
    /// Writes the content to the object store. It is recorded first, so that the sweep finds it if no row names it.
    ///
    /// # Errors
    /// [`ApiError::StorageRefused`]: the trainer sends its last report again later. [`ApiError::Internal`].
    pub async fn put(&self, app: &App) -> Result<(), ApiError> {
        let mut tx = app.platform().await?;
        blob::announce(&mut tx, &[self.sha256]).await?;
        tx.commit_at(FailPoint::RunAnnounceResults).await?;
        let put = app.objects.put(&blob_key(self.sha256), self.text.clone()).await;
        put.map_err(|cause| ApiError::StorageRefused { what: "job's results", cause })
    }

    /// Makes the content the result file of the job, if the job has none.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub async fn name(&self, tx: &mut PgConnection, id: JobId) -> Result<(), ApiError> {
        if are_wanted(&job::load(tx, id).await?) {
            results::name(tx, id, self.sha256, Bytes(self.text.len() as u64)).await?;
        }
        Ok(())
    }
}
