//! The small files of a base model (tokenizer, chat template, configs), cached in a folder on this machine's disk.
//! Weights are never fetched here.

use std::path::Path;

use attune_domain::run::Blob;
use attune_store::{adapters::base_model::small_files, error::StoreError, files::objects::Objects};
use attune_text::model::FILES;

/// The reason why the folder could not be created.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file on this machine could not be written.
    #[error("{path} cannot be written")]
    File {
        /// The file's path.
        path: String,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
}

/// Returns whether the folder exists; it is complete then.
pub async fn is_cached(folder: &Path) -> bool {
    tokio::fs::try_exists(folder).await.unwrap_or(false)
}

/// Fetches the text files among `files` into the folder.
///
/// # Errors
/// [`FolderError`].
pub async fn fetch(objects: &Objects, files: &[Blob], folder: &Path) -> Result<(), FolderError> {
    // Created under a temporary name, then renamed: the folder is complete or missing.
    let made = folder.with_added_extension(uuid::Uuid::now_v7().simple().to_string());
    let renamed = match write(objects, files, &made).await {
        Ok(()) => tokio::fs::rename(&made, folder).await.map_err(|e| failed(folder, e)),
        Err(error) => Err(error),
    };
    if renamed.is_err() {
        drop(tokio::fs::remove_dir_all(&made).await);
        if is_cached(folder).await {
            return Ok(()); // another task was faster
        }
    }
    renamed
}

async fn write(objects: &Objects, files: &[Blob], folder: &Path) -> Result<(), FolderError> {
    tokio::fs::create_dir_all(folder).await.map_err(|e| failed(folder, e))?;
    for (name, content) in small_files(objects, files, &FILES).await? {
        let path = folder.join(&name);
        tokio::fs::write(&path, &content).await.map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

fn failed(path: &Path, cause: std::io::Error) -> FolderError {
    FolderError::File { path: path.display().to_string(), cause }
}
