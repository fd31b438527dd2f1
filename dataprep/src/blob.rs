//! Content of the object store, read on a thread of its own while it streams. The channel between both is short, so a
//! slow reader slows the stream down, and memory does not grow with the content.

use attune_domain::digest::Sha256;
use attune_store::{
    error::StoreError,
    files::objects::{Objects, blob_key},
};
use bytes::Bytes;
use sha2::Digest;
use tokio::{
    sync::mpsc::channel,
    task::{JoinError, spawn_blocking},
};

/// The number of chunks that may wait for the reader.
const WAITING_CHUNKS: usize = 4;

/// The content in chunks. Taking the next one blocks until it has arrived.
pub type Chunks<'a> = &'a mut dyn Iterator<Item = Bytes>;

/// The reason why content could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The object could not be opened.
    #[error(transparent)]
    Open(StoreError),
    /// The content broke off, or does not match its digest.
    #[error(transparent)]
    Broken(StoreError),
    /// The reader panicked.
    #[error("a worker thread panicked")]
    Thread(#[source] JoinError),
}

/// Runs `read` over the content of this digest, on a thread of its own. The stream ends early if `read` does. The
/// content is not checked against the digest.
///
/// # Errors
/// [`ReadError`].
pub async fn read_blob<T, F>(objects: &Objects, sha256: Sha256, read: F) -> Result<T, ReadError>
where
    T: Send + 'static,
    F: FnOnce(Chunks<'_>) -> T + Send + 'static,
{
    let key = blob_key(sha256);
    let mut body = objects.get(&key).await.map_err(ReadError::Open)?;
    let (sender, mut inbox) = channel(WAITING_CHUNKS);
    let reading = spawn_blocking(move || read(&mut std::iter::from_fn(move || inbox.blocking_recv())));
    let streamed = loop {
        match body.try_next().await {
            Ok(Some(chunk)) => {
                if sender.send(chunk).await.is_err() {
                    break Ok(()); // the reader has ended, or panicked: joining it returns the error then
                }
            }
            Ok(None) => break Ok(()),
            Err(cause) => break Err(ReadError::Broken(StoreError::object("get", &key, cause))),
        }
    };
    drop(sender);
    let value = reading.await.map_err(ReadError::Thread)?;
    streamed.map(|()| value)
}

/// Runs `read` like [`read_blob`], and checks all of the content against the digest.
///
/// # Errors
/// [`ReadError`]; [`StoreError::Digest`], with the file's `name`, if the content has another digest.
pub async fn read_checked<T, F>(objects: &Objects, name: &str, sha256: Sha256, read: F) -> Result<T, ReadError>
where
    T: Send + 'static,
    F: FnOnce(Chunks<'_>) -> T + Send + 'static,
{
    let (value, found) = read_blob(objects, sha256, move |chunks| hashed(chunks, read)).await?;
    if found == sha256 {
        return Ok(value);
    }
    Err(ReadError::Broken(StoreError::Digest { name: name.to_owned(), wanted: sha256, found }))
}

/// Returns the result of `read`, and the digest of all chunks.
fn hashed<T>(chunks: Chunks<'_>, read: impl FnOnce(Chunks<'_>) -> T) -> (T, Sha256) {
    let mut hasher = sha2::Sha256::new();
    let mut rest = chunks.inspect(|chunk| hasher.update(chunk));
    let value = read(&mut rest);
    rest.for_each(drop);
    (value, Sha256::from_digest(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_all_chunks_even_if_the_reader_ends_early() {
        let chunks = || [Bytes::from_static(b"attune "), Bytes::from_static(b"reads")].into_iter();
        let all = Sha256::from_digest(sha2::Sha256::digest(b"attune reads").into());
        assert_eq!(hashed(&mut chunks(), |chunks| chunks.map(|chunk| chunk.len()).sum::<usize>()), (12, all));
        assert_eq!(hashed(&mut chunks(), |chunks| chunks.take(1).count()), (1, all));
    }
}
