//! The small files of a base model (tokenizer, chat template, configs), cached on this machine's disk: validation needs
//! no others. Weights are never fetched here.

use std::path::{Path, PathBuf};

use attune_domain::run::Blob;
use attune_store::{adapters::base_model, files::objects::Objects};
use attune_text::model::FILES;

use crate::{app::App, error::SchedulerError};

/// Returns the complete folder. Fetches it if it is not cached.
///
/// # Errors
/// [`SchedulerError::Store`], [`SchedulerError::File`].
pub(super) async fn ensure(app: &App, base: &base_model::BaseModel) -> Result<PathBuf, SchedulerError> {
    let folder = app.cache_dir.join(&base.digest);
    if tokio::fs::try_exists(&folder).await.unwrap_or(false) {
        return Ok(folder);
    }
    let mut conn = app.single().await?;
    let files = base_model::files(&mut conn, base.base_model_id).await?;
    drop(conn);
    // Created under a temporary name, then renamed: the folder is complete or missing.
    let made = app.cache_dir.join(format!("{}.{}", base.digest, uuid::Uuid::now_v7().simple()));
    let fetched = fetch(&app.objects, &files, &made).await;
    let renamed = match fetched {
        Ok(()) => tokio::fs::rename(&made, &folder).await.map_err(|e| failed(&folder, e)),
        Err(error) => Err(error),
    };
    if renamed.is_err() {
        drop(tokio::fs::remove_dir_all(&made).await);
        if tokio::fs::try_exists(&folder).await.unwrap_or(false) {
            return Ok(folder); // another task was faster
        }
    }
    renamed.map(|()| folder)
}

async fn fetch(objects: &Objects, files: &[Blob], folder: &Path) -> Result<(), SchedulerError> {
    tokio::fs::create_dir_all(folder).await.map_err(|e| failed(folder, e))?;
    for (name, content) in base_model::small_files(objects, files, &FILES).await? {
        let path = folder.join(&name);
        tokio::fs::write(&path, &content).await.map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

fn failed(path: &Path, cause: std::io::Error) -> SchedulerError {
    SchedulerError::File { path: path.display().to_string(), cause }
}
