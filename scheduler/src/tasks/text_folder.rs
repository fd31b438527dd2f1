//! The folder of a base model's text files on this machine's disk: validation needs no others.

use std::path::PathBuf;

use attune_dataprep::text_folder::{fetch, is_cached};
use attune_store::adapters::base_model;

use crate::{app::App, error::SchedulerError};

/// Returns the complete folder. Fetches it if it is not cached.
///
/// # Errors
/// [`SchedulerError::Store`], [`SchedulerError::File`].
pub(super) async fn ensure(app: &App, base: &base_model::BaseModel) -> Result<PathBuf, SchedulerError> {
    let folder = app.text_dir.join(base.digest.to_string());
    if is_cached(&folder).await {
        return Ok(folder);
    }
    let mut conn = app.single().await?;
    let files = base_model::files(&mut conn, base.base_model_id).await?;
    drop(conn);
    fetch(&app.objects, &files, &folder).await?;
    Ok(folder)
}
