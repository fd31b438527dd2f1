//! The object store and its keys. Always accessed through `aws-sdk-s3`, for any server.
//!
//! Content is stored under `blob/<sha256>`: equal content is stored once, and a key always means the same content. An
//! upload in progress, without a digest yet, is stored under `upload/<uuid>`. Keys stay short: the embedded server's
//! limit is 130 bytes.

use std::{ops::RangeInclusive, time::Duration};

use attune_domain::{bytes::Bytes as ByteCount, digest::Sha256, run::RemoteFile};
use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation},
    error::{ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use aws_smithy_http_client::{Builder, tls};
use bytes::{Bytes, BytesMut};
use secrecy::ExposeSecret;

use crate::{
    config::ObjectStoreConfig,
    error::{Refusal, StoreError},
    files::object_metrics::Timing,
};

/// The validity of a presigned URL.
const URL_LIFE: Duration = Duration::from_secs(3600);

/// The size of an upload's parts; S3 requires at least 5 MiB. Shorter content is uploaded in a single request.
const PART_BYTES: usize = 5 << 20;

/// The initial buffer capacity: most objects are small.
const FIRST_BYTES: usize = 64 << 10;

/// A client of one bucket.
#[derive(Debug, Clone)]
pub struct Objects {
    pub(super) client: Client,
    pub(super) bucket: String,
}

/// Returns the key of content.
#[must_use]
pub fn blob_key(sha256: Sha256) -> String {
    format!("{BLOB}{sha256}")
}

/// The key prefix of content that is stored under its digest.
pub(crate) const BLOB: &str = "blob/";

/// The key prefix of content whose digest is not known yet.
pub(crate) const STAGED: &str = "upload/";

/// Generates a key for content whose digest is not known yet. Later keys sort after earlier ones.
#[must_use]
pub fn upload_key() -> String {
    format!("{STAGED}{}", uuid::Uuid::now_v7().simple())
}

impl Objects {
    /// Creates a client for the bucket; connects when it is first used.
    #[must_use]
    pub fn new(config: &ObjectStoreConfig) -> Self {
        let http =
            Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https();
        let secret = config.secret_access_key.expose_secret();
        let mut client = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            .force_path_style(config.path_style)
            // Several services refuse the checksums that the SDK sends by default. The object's key contains our own.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .http_client(http)
            .credentials_provider(Credentials::new(&config.access_key_id, secret, None, None, "attune"));
        client.set_endpoint_url(config.endpoint.clone());
        Self { client: Client::from_conf(client.build()), bucket: config.bucket.clone() }
    }

    /// Creates the bucket if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub async fn ensure_bucket(&self) -> Result<(), StoreError> {
        if self.client.head_bucket().bucket(&self.bucket).send().await.is_ok() {
            return Ok(());
        }
        match self.client.create_bucket().bucket(&self.bucket).send().await {
            Ok(_) => Ok(()),
            // Another process may have created it first.
            Err(_) if self.client.head_bucket().bucket(&self.bucket).send().await.is_ok() => Ok(()),
            Err(error) => Err(refused("create the bucket", &self.bucket, error)),
        }
    }

    /// Writes an object, reads it and deletes it again. Run at startup, so that an unusable service is found then and
    /// not at a user's first upload.
    ///
    /// # Errors
    /// [`StoreError::Object`], with the service's reason.
    pub async fn try_out(&self) -> Result<(), StoreError> {
        let key = upload_key();
        let content = Bytes::from_static(b"attune tries the object store");
        self.put(&key, content.clone()).await?;
        let found = self.get_whole(&key).await;
        self.delete(&key).await?;
        if found? == content {
            return Ok(());
        }
        Err(StoreError::object(
            "return what was written to",
            &key,
            std::io::Error::from(std::io::ErrorKind::InvalidData),
        ))
    }

    /// Returns the object's length; `None`: it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub async fn head(&self, key: &str) -> Result<Option<ByteCount>, StoreError> {
        let timing = Timing::of("head");
        let head = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        timing.end(&head);
        match head {
            Ok(head) => Ok(Some(ByteCount::from_i64(head.content_length().unwrap_or(0)))),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_not_found()) => Ok(None),
            Err(error) => Err(refused("inspect", key, error)),
        }
    }

    /// Returns the object as a stream: `try_next` for chunks, `into_async_read` for a reader.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: the object does not exist. [`StoreError::Object`].
    pub async fn get(&self, key: &str) -> Result<ByteStream, StoreError> {
        let timing = Timing::of("get");
        let object = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        timing.end(&object);
        match object {
            Ok(object) => Ok(object.body),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_no_such_key()) => {
                Err(StoreError::NotFound("object"))
            }
            Err(error) => Err(refused("get", key, error)),
        }
    }

    /// Returns a byte range of the object, both ends included.
    ///
    /// # Errors
    /// As [`Objects::get`]; also when the object is shorter.
    pub async fn get_range(&self, key: &str, range: RangeInclusive<u64>) -> Result<ByteStream, StoreError> {
        let header = format!("bytes={}-{}", range.start(), range.end());
        let timing = Timing::of("get");
        let object = self.client.get_object().bucket(&self.bucket).key(key).range(header).send().await;
        timing.end(&object);
        match object {
            Ok(object) => Ok(object.body),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_no_such_key()) => {
                Err(StoreError::NotFound("object"))
            }
            Err(error) => Err(refused("get", key, error)),
        }
    }

    /// Returns the whole object. For small ones.
    ///
    /// # Errors
    /// As [`Objects::get`].
    pub async fn get_whole(&self, key: &str) -> Result<Bytes, StoreError> {
        let body = self.get(key).await?.collect().await;
        Ok(body.map_err(|e| StoreError::object("get", key, e))?.into_bytes())
    }

    /// Writes a small object in one request.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub async fn put(&self, key: &str, content: impl Into<Bytes>) -> Result<(), StoreError> {
        let body = ByteStream::from(content.into());
        let timing = Timing::of("put");
        let put = self.client.put_object().bucket(&self.bucket).key(key).body(body).send().await;
        timing.end(&put);
        put.map(drop).map_err(|e| refused("put", key, e))
    }

    /// Moves an object to the key of its content, once its digest is known.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let source = format!("{}/{from}", self.bucket);
        let timing = Timing::of("copy");
        let copy = self.client.copy_object().bucket(&self.bucket).copy_source(source).key(to).send().await;
        timing.end(&copy);
        copy.map_err(|e| refused("copy", from, e))?;
        self.delete(from).await
    }

    /// Deletes an object; a missing one is no error.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let timing = Timing::of("delete");
        let deleted = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
        timing.end(&deleted);
        deleted.map(drop).map_err(|e| refused("delete", key, e))
    }

    /// Returns the objects under keys of [`upload_key`], in the order of their keys, after `after`; one page at a time.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub(crate) async fn staged(&self, after: Option<&str>) -> Result<Vec<StagedObject>, StoreError> {
        // With the delimiter the embedded server reads that folder alone.
        let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(STAGED).delimiter("/");
        let timing = Timing::of("list");
        let page = list.set_start_after(after.map(str::to_owned)).send().await;
        timing.end(&page);
        let page = page.map_err(|e| StoreError::object("list", STAGED, e))?;
        let staged = page.contents().iter().filter_map(|object| {
            Some(StagedObject { key: object.key()?.to_owned(), stored_at: object.last_modified()?.secs() })
        });
        Ok(staged.collect())
    }

    /// Returns a presigned URL that downloads the object, valid for an hour.
    ///
    /// # Errors
    /// [`StoreError::Object`]: it could not be signed.
    pub async fn presign_get(&self, key: &str) -> Result<String, StoreError> {
        let life = presigning(key)?;
        let request = self.client.get_object().bucket(&self.bucket).key(key).presigned(life).await;
        Ok(request.map_err(|e| refused("sign", key, e))?.uri().to_owned())
    }

    /// Returns a presigned URL that uploads the object, valid for an hour.
    ///
    /// # Errors
    /// [`StoreError::Object`]: it could not be signed.
    pub async fn presign_put(&self, key: &str) -> Result<String, StoreError> {
        let life = presigning(key)?;
        let request = self.client.put_object().bucket(&self.bucket).key(key).presigned(life).await;
        Ok(request.map_err(|e| refused("sign", key, e))?.uri().to_owned())
    }

    /// Returns a file as contracts carry it: with a presigned URL.
    ///
    /// # Errors
    /// As [`Objects::presign_get`].
    pub async fn remote_file(&self, name: &str, sha256: Sha256, bytes: ByteCount) -> Result<RemoteFile, StoreError> {
        let url = self.presign_get(&blob_key(sha256)).await?;
        Ok(RemoteFile { name: name.to_owned(), sha256, bytes, url })
    }

    /// Starts to write an object of unknown length. It is not visible under the key until [`Upload::finish`].
    #[must_use]
    pub fn upload(&self, key: &str) -> Upload {
        let (objects, key) = (self.clone(), key.to_owned());
        Upload { objects, key, pending: BytesMut::new(), is_long: false, multipart_id: None, parts: Vec::new() }
    }
}

/// An object whose content has no digest yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StagedObject {
    /// The key.
    pub(crate) key: String,
    /// The time at which it was stored, by the object store's clock, in seconds since 1970.
    pub(crate) stored_at: i64,
}

/// Converts an SDK error, with the service's error response if there was one.
pub(super) fn refused<E>(action: &'static str, key: &str, error: SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    let code = error.code().unwrap_or("no code").to_owned();
    let refusal = status.map(|status| Refusal { status, code });
    StoreError::Object { action, key: key.to_owned(), refusal, cause: Box::new(error) }
}

fn presigning(key: &str) -> Result<PresigningConfig, StoreError> {
    PresigningConfig::expires_in(URL_LIFE).map_err(|e| StoreError::object("sign", key, e))
}

/// An object that is being written. Dropping it without [`Upload::abort`] leaves invisible parts until the sweep.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    key: String,
    pending: BytesMut,
    /// True once it exceeds one part.
    is_long: bool,
    multipart_id: Option<String>,
    parts: Vec<CompletedPart>,
}

impl Upload {
    /// Writes the next chunk.
    ///
    /// # Errors
    /// [`StoreError::Object`]; the caller should abort.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        let mut rest = piece;
        while !rest.is_empty() {
            if self.pending.capacity() == 0 {
                // Allocated once: a buffer that grows with its content is reallocated and copied repeatedly.
                self.pending = BytesMut::with_capacity(if self.is_long { PART_BYTES } else { FIRST_BYTES });
            }
            let (now, later) = rest.split_at(rest.len().min(PART_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            rest = later;
            if self.pending.len() == PART_BYTES {
                self.is_long = true;
                let part = std::mem::take(&mut self.pending).freeze();
                self.put_part(part).await?;
            }
        }
        Ok(())
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let failed = |e| refused("put a part of", &self.key, e);
        let Objects { client, bucket } = &self.objects;
        let id = match &self.multipart_id {
            Some(id) => id.clone(),
            None => {
                let begun = client.create_multipart_upload().bucket(bucket).key(&self.key).send().await;
                let begun = begun.map_err(|e| refused("begin to put", &self.key, e))?;
                self.multipart_id.insert(begun.upload_id().unwrap_or_default().to_owned()).clone()
            }
        };
        let number = i32::try_from(self.parts.len() + 1).unwrap_or(i32::MAX);
        let put = client.upload_part().bucket(bucket).key(&self.key).upload_id(&id).part_number(number);
        let timing = Timing::of("part");
        let put = put.body(ByteStream::from(part)).send().await;
        timing.end(&put);
        let put = put.map_err(failed)?;
        let done = CompletedPart::builder().part_number(number).set_e_tag(put.e_tag().map(Into::into));
        self.parts.push(done.set_checksum_crc32(put.checksum_crc32().map(Into::into)).build());
        Ok(())
    }

    /// Makes the object visible.
    ///
    /// # Errors
    /// [`StoreError::Object`]; nothing is visible then.
    pub async fn finish(mut self) -> Result<(), StoreError> {
        if self.multipart_id.is_none() {
            return self.objects.put(&self.key, self.pending.split().freeze()).await;
        }
        if !self.pending.is_empty() {
            let rest = self.pending.split().freeze();
            if let Err(error) = self.put_part(rest).await {
                self.abort().await;
                return Err(error);
            }
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.parts))).build();
        let Objects { client, bucket } = &self.objects;
        let complete = client.complete_multipart_upload().bucket(bucket).key(&self.key).multipart_upload(parts);
        let timing = Timing::of("complete");
        let completed = complete.set_upload_id(self.multipart_id.clone()).send().await;
        timing.end(&completed);
        completed.map(drop).map_err(|e| refused("finish", &self.key, e))
    }

    /// Discards the parts. A failure is only logged: the caller has its own error to report.
    pub async fn abort(self) {
        let Some(id) = self.multipart_id else { return };
        let Objects { client, bucket } = &self.objects;
        let aborted = client.abort_multipart_upload().bucket(bucket).key(&self.key).upload_id(id).send().await;
        if let Err(error) = aborted {
            tracing::warn!(
                key = self.key,
                error = &error as &dyn std::error::Error,
                "an upload's parts could not be deleted"
            );
        }
    }
}
