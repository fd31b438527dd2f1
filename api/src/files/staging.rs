//! Content on its way from a caller into the object store: counted, hashed, and thrown away again if anything fails,
//! the caller leaves, or the handler is dropped for any other reason.

use attune_domain::bytes::Bytes;
use attune_store::{
    adapters::base_model::hex,
    error::StoreError,
    files::{
        blob,
        objects::{Objects, Upload, blob_key},
    },
};
use sha2::{Digest, Sha256};

use crate::{
    app::App,
    error::{ApiError, chain},
};

/// An upload that nobody sees until [`Incoming::finish`].
pub struct Incoming {
    upload: Option<Upload>,
    hasher: Sha256,
    bytes: u64,
    limit: u64,
    what: &'static str,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Lower-case hex.
    pub sha256: String,
    /// Its length.
    pub bytes: Bytes,
}

impl Incoming {
    /// Begins to take a `what` of at most `limit` bytes, to be put under `key`.
    pub fn begin(objects: &Objects, key: &str, what: &'static str, limit: u64) -> Self {
        Self { upload: Some(objects.upload(key)), hasher: Sha256::new(), bytes: 0, limit, what }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// [`ApiError::TooLarge`], [`ApiError::StorageRefused`]; nothing is kept then.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        self.bytes += piece.len() as u64;
        if self.bytes > self.limit {
            self.abort().await;
            return Err(ApiError::TooLarge { what: self.what, limit: self.limit });
        }
        self.hasher.update(piece);
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let what = self.what;
        match upload.write(piece).await {
            Ok(()) => Ok(()),
            Err(cause) => {
                self.abort().await;
                Err(ApiError::StorageRefused { what, cause })
            }
        }
    }

    /// What came so far.
    pub fn arrived(&self) -> Arrived {
        Arrived { sha256: hex(&self.hasher.clone().finalize()), bytes: Bytes(self.bytes) }
    }

    /// Puts it in sight, under the key that it was begun with. A caller that leaves does not stop it half-way.
    ///
    /// # Errors
    /// [`ApiError::StorageRefused`]; nothing is kept then.
    pub async fn finish(mut self) -> Result<Arrived, ApiError> {
        let (arrived, what) = (self.arrived(), self.what);
        if let Some(upload) = self.upload.take() {
            let finished = tokio::spawn(upload.finish()).await.map_err(ApiError::internal)?;
            finished.map_err(|cause| ApiError::StorageRefused { what, cause })?;
        }
        Ok(arrived)
    }

    /// Puts it in sight until it is placed or dropped. If the caller leaves meanwhile, it goes as soon as it is there.
    ///
    /// # Errors
    /// As [`Incoming::finish`].
    pub async fn stage(self, objects: &Objects, key: String) -> Result<(Staged, Arrived), ApiError> {
        let objects = objects.clone();
        let staging = async move {
            let arrived = self.finish().await?;
            Ok((Staged::new(&objects, key), arrived))
        };
        tokio::spawn(staging).await.map_err(ApiError::internal)?
    }

    /// Throws away what came; more is still counted, but not kept.
    pub async fn abort(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort().await;
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // A caller that leaves drops the handler in the middle; the parts must not stay.
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(upload.abort());
        }
    }
}

/// An object under a key of its own, in sight but named by no row; it goes when this is dropped.
pub struct Staged {
    objects: Objects,
    key: Option<String>,
}

impl Staged {
    /// Takes care of the object under `key`.
    pub fn new(objects: &Objects, key: String) -> Self {
        Self { objects: objects.clone(), key: Some(key) }
    }

    /// Where it lies.
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or_default()
    }

    /// Puts it under the digest of its content, unless the store has that already. The caller holds no connection, and
    /// writes the row that names it afterwards. The note of it is committed first: if no row comes, the sweep finds it.
    ///
    /// # Errors
    /// [`ApiError::StorageRefused`], [`ApiError::Internal`].
    pub async fn place(self, app: &App, arrived: &Arrived, what: &'static str) -> Result<(), ApiError> {
        let mut tx = app.platform().await?;
        blob::announce(&mut tx, std::slice::from_ref(&arrived.sha256)).await?;
        tx.commit().await?;
        if self.objects.head(&blob_key(&arrived.sha256)).await? == Some(arrived.bytes) {
            self.discard().await;
            return Ok(());
        }
        self.keep(&arrived.sha256).await.map_err(|cause| ApiError::StorageRefused { what, cause })
    }

    /// Moves it to the key of its content.
    async fn keep(mut self, sha256: &str) -> Result<(), StoreError> {
        if let Some(key) = &self.key {
            self.objects.rename(key, &blob_key(sha256)).await?;
        }
        self.key = None;
        Ok(())
    }

    /// A row names it now: it stays.
    pub fn stay(mut self) {
        self.key = None;
    }

    /// Deletes it. A failure is only logged: the caller has an error of its own to tell, or has its content already.
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
        tracing::warn!(key, error = chain(&error), "an upload that nobody names stays behind");
    }
}

/// Whether `text` is a SHA-256 in lower-case hex.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
