//! Content on its way from a caller into the object store: counted, hashed, and deleted again if anything fails, the
//! caller disconnects, or the handler is dropped for any other reason.

use attune_domain::{bytes::Bytes, digest::Sha256};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use sha2::Digest;
use sqlx::PgPool;
use tokio::task::JoinError;

use crate::{
    db,
    error::StoreError,
    files::{
        blob,
        objects::{Objects, Upload, blob_key},
    },
};

/// The reason why content could not be received or stored.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// Content that exceeds its size limit.
    #[error("the {what} is larger than {limit} bytes")]
    TooLarge {
        /// The oversized content, such as `file`.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The object store did not accept the content.
    #[error("the {what} could not be stored")]
    Refused {
        /// The affected content, such as `file`.
        what: &'static str,
        /// The store's error.
        #[source]
        cause: StoreError,
    },
    /// The content's record could not be written, or the object store could not be queried.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task that makes the object visible panicked.
    #[error("the upload's task panicked")]
    Task(#[from] JoinError),
}

/// An upload that is not visible until [`Incoming::finish`].
pub struct Incoming {
    upload: Option<Upload>,
    hasher: sha2::Sha256,
    bytes: u64,
    limit: u64,
    what: &'static str,
}

/// The digest and size of received content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// The SHA-256.
    pub sha256: Sha256,
    /// The size.
    pub bytes: Bytes,
}

impl Incoming {
    /// Begins to receive a `what` of at most `limit` bytes, to be stored under `key`.
    pub fn begin(objects: &Objects, key: &str, what: &'static str, limit: u64) -> Self {
        Self { upload: Some(objects.upload(key)), hasher: sha2::Sha256::new(), bytes: 0, limit, what }
    }

    /// Writes the next chunk.
    ///
    /// # Errors
    /// [`StagingError::TooLarge`], [`StagingError::Refused`]; nothing is kept then.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StagingError> {
        self.bytes += piece.len() as u64;
        if self.bytes > self.limit {
            self.abort().await;
            return Err(StagingError::TooLarge { what: self.what, limit: self.limit });
        }
        self.hasher.update(piece);
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let what = self.what;
        match upload.write(piece).await {
            Ok(()) => Ok(()),
            Err(cause) => {
                self.abort().await;
                Err(StagingError::Refused { what, cause })
            }
        }
    }

    /// Returns the digest and size of the content so far.
    pub fn arrived(&self) -> Arrived {
        Arrived { sha256: Sha256::from_digest(self.hasher.clone().finalize().into()), bytes: Bytes(self.bytes) }
    }

    /// Makes the object visible under its key. A caller that disconnects does not interrupt this.
    ///
    /// # Errors
    /// [`StagingError::Refused`], [`StagingError::Task`]; nothing is kept then.
    pub async fn finish(mut self) -> Result<Arrived, StagingError> {
        let (arrived, what) = (self.arrived(), self.what);
        if let Some(upload) = self.upload.take() {
            let finished = tokio::spawn(upload.finish()).await?;
            finished.map_err(|cause| StagingError::Refused { what, cause })?;
        }
        Ok(arrived)
    }

    /// Makes the object visible until it is placed or dropped. If the caller disconnects meanwhile, the object is
    /// deleted as soon as it exists.
    ///
    /// # Errors
    /// As [`Incoming::finish`].
    pub async fn stage(self, objects: &Objects, key: String) -> Result<(Staged, Arrived), StagingError> {
        let objects = objects.clone();
        let staging = async move {
            let arrived = self.finish().await?;
            Ok((Staged::new(&objects, key), arrived))
        };
        tokio::spawn(staging).await?
    }

    /// Discards the content; further chunks are still counted, but not stored.
    pub async fn abort(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort().await;
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // A caller that disconnects drops the handler before its end; the uploaded parts must not remain.
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(upload.abort());
        }
    }
}

/// A visible object under a key of its own that no row names; it is deleted when this is dropped.
pub struct Staged {
    objects: Objects,
    key: Option<String>,
}

impl Staged {
    /// Takes ownership of the object under `key`.
    pub fn new(objects: &Objects, key: String) -> Self {
        Self { objects: objects.clone(), key: Some(key) }
    }

    /// Returns the object's key.
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or_default()
    }

    /// Moves the object to the key of its digest, unless the store already has that content. The caller holds no
    /// connection, and writes the row that names the content afterwards. The content is recorded, and the record
    /// committed, first: if no row follows, the sweep finds it.
    ///
    /// # Errors
    /// [`StagingError::Refused`], [`StagingError::Store`].
    pub async fn place(self, db: &PgPool, arrived: &Arrived, what: &'static str) -> Result<(), StagingError> {
        let mut tx = db::platform(db).await?;
        blob::announce(&mut tx, &[arrived.sha256]).await?;
        tx.commit_at(FailPoint::ContentAnnounce).await?;
        if self.objects.head(&blob_key(arrived.sha256)).await? == Some(arrived.bytes) {
            self.discard().await;
            return Ok(());
        }
        self.keep(arrived.sha256).await.map_err(|cause| StagingError::Refused { what, cause })
    }

    /// Moves the object to the key of its digest.
    async fn keep(mut self, sha256: Sha256) -> Result<(), StoreError> {
        if let Some(key) = &self.key {
            self.objects.rename(key, &blob_key(sha256)).await?;
        }
        self.key = None;
        Ok(())
    }

    /// Keeps the object, which a row names now.
    pub fn stay(mut self) {
        self.key = None;
    }

    /// Deletes the object. A failure is only logged: the caller has an error of its own to report, or its content is
    /// already stored.
    pub async fn discard(mut self) {
        if let Some(key) = self.key.take() {
            delete(&self.objects, &key).await;
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let (Some(key), Ok(runtime)) = (self.key.take(), tokio::runtime::Handle::try_current()) {
            let objects = self.objects.clone();
            runtime.spawn(async move { delete(&objects, &key).await });
        }
    }
}

async fn delete(objects: &Objects, key: &str) {
    if let Err(error) = objects.delete(key).await {
        tracing::warn!(key, error = chain(&error), "an upload without a row could not be deleted");
    }
}
