//! A base model's tokenizer and chat template, opened from the object store in memory.

use attune_domain::run::Blob;
use attune_store::{adapters::base_model::small_files, error::StoreError, files::objects::Objects};
use attune_text::{
    error::TextError,
    model::{FILES, TextModel},
};
use tokio::task::{JoinError, spawn_blocking};

/// The reason why a base model's text files could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file could not be fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tokenizer or the chat template is not valid.
    #[error(transparent)]
    Text(TextError),
    /// The thread panicked.
    #[error("a worker thread panicked")]
    Thread(#[source] JoinError),
}

/// Opens the text model among a base model's files. Parsing runs on a thread of its own, which holds `slot` until it is
/// done.
///
/// # Errors
/// [`OpenError`].
pub async fn open<S: Send + 'static>(objects: &Objects, files: &[Blob], slot: S) -> Result<TextModel, OpenError> {
    let files = small_files(objects, files, &FILES).await?;
    let opening = spawn_blocking(move || {
        let _slot = slot;
        TextModel::from_files(&files)
    });
    opening.await.map_err(OpenError::Thread)?.map_err(OpenError::Text)
}
