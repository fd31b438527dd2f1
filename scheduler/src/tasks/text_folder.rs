//! The small files of a base model (tokenizer, chat template, configs), on this machine's disk: all that validation
//! needs of it. Weights are never fetched here.

use std::path::{Path, PathBuf};

use attune_domain::run::Blob;
use attune_store::{
    base_model,
    objects::{Objects, blob_key},
};
use sha2::{Digest, Sha256};

use crate::{app::App, error::SchedulerError};

/// No text file of a model is nearly as large.
const LARGEST_BYTES: u64 = 256 << 20;

/// The folder, complete. Fetched when it is not there yet.
///
/// # Errors
/// [`SchedulerError::Store`], [`SchedulerError::File`], [`SchedulerError::Digest`].
pub(super) async fn ensure(app: &App, base: &base_model::BaseModel) -> Result<PathBuf, SchedulerError> {
    let folder = app.cache_dir.join(&base.digest);
    if tokio::fs::try_exists(&folder).await.unwrap_or(false) {
        return Ok(folder);
    }
    let mut conn = app.pool.acquire().await?;
    let files = base_model::files(&mut conn, base.base_model_id).await?;
    drop(conn);
    // Complete or not there: made under another name, then renamed.
    let made = app.cache_dir.join(format!("{}.{}", base.digest, uuid::Uuid::now_v7().simple()));
    let fetched = fetch(&app.objects, &files, &made).await;
    let renamed = match fetched {
        Ok(()) => tokio::fs::rename(&made, &folder).await.map_err(|e| failed(&folder, e)),
        Err(error) => Err(error),
    };
    if renamed.is_err() {
        drop(tokio::fs::remove_dir_all(&made).await);
        if tokio::fs::try_exists(&folder).await.unwrap_or(false) {
            return Ok(folder); // somebody else was faster
        }
    }
    renamed.map(|()| folder)
}

async fn fetch(objects: &Objects, files: &[Blob], folder: &Path) -> Result<(), SchedulerError> {
    tokio::fs::create_dir_all(folder).await.map_err(|e| failed(folder, e))?;
    for file in files.iter().filter(|file| is_text(file)) {
        let content = objects.get_whole(&blob_key(&file.sha256)).await?;
        let found = hex(&Sha256::digest(&content));
        if found != file.sha256 {
            return Err(SchedulerError::Digest { name: file.name.clone(), wanted: file.sha256.clone(), found });
        }
        let path = folder.join(&file.name);
        tokio::fs::write(&path, &content).await.map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

/// Everything but weights. A name with a separator would leave the folder; the api lets none in.
fn is_text(file: &Blob) -> bool {
    !file.name.ends_with(".safetensors") && !file.name.contains(['/', '\\']) && file.bytes.0 <= LARGEST_BYTES
}

fn failed(path: &Path, cause: std::io::Error) -> SchedulerError {
    SchedulerError::File { path: path.display().to_string(), cause }
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
