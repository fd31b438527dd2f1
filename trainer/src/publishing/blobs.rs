//! Files into the object store, under their digests, through addresses that the platform grants. What is there already
//! is not sent again.

use std::{path::Path, time::Duration};

use attune_domain::{
    bytes::Bytes,
    run::{Blob, BlobGrant, BlobsWanted},
};
use attune_node::{NodeError, Platform, sha256_of_file};
use backon::Retryable;
use reqwest::{Body, StatusCode, header::CONTENT_LENGTH};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::report::patience;

/// The longest pause between two tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(20);

/// Puts every file of `folder` and says what they are, sorted by name. All are there when this returns well.
///
/// # Errors
/// [`NodeError::Ended`]: the run's lease is stale. [`NodeError::Io`], [`NodeError::Refused`], and, after
/// [`PATIENCE`](crate::report::PATIENCE) of trying, [`NodeError::Away`] or [`NodeError::Busy`].
pub async fn put_folder(platform: &Platform, run_lease: i64, folder: &Path) -> Result<Vec<Blob>, NodeError> {
    let blobs = described(folder).await?;
    let wanted = BlobsWanted { run_lease, blobs: blobs.clone() };
    let grants: Vec<BlobGrant> = (|| platform.post("/internal/run/blobs", &wanted))
        .retry(patience(LONGEST_BACKOFF))
        .when(NodeError::is_passing)
        .notify(|why, _| tracing::warn!(%why, "no place was granted yet; trying again"))
        .await?;
    for blob in &blobs {
        let granted = grants.iter().find(|grant| grant.sha256 == blob.sha256).ok_or_else(|| NodeError::Refused {
            what: "POST /internal/run/blobs".into(),
            status: 200,
            body: format!("nothing is said about {}", blob.name),
        })?;
        let Some(url) = &granted.url else { continue };
        let path = folder.join(&blob.name);
        (|| put(platform, url, blob, &path))
            .retry(patience(LONGEST_BACKOFF))
            .when(NodeError::is_passing)
            .notify(|why, _| tracing::warn!(%why, "an upload broke off; trying again"))
            .await?;
    }
    Ok(blobs)
}

async fn described(folder: &Path) -> Result<Vec<Blob>, NodeError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(NodeError::io(folder))? {
        let entry = entry.map_err(NodeError::io(folder))?;
        names.push(entry.file_name().into_string().map_err(|name| NodeError::BadName(format!("{name:?}")))?);
    }
    names.sort();
    let mut blobs = Vec::new();
    for name in names {
        let (sha256, bytes) = sha256_of_file(&folder.join(&name)).await?;
        blobs.push(Blob { name, sha256, bytes: Bytes(bytes) });
    }
    Ok(blobs)
}

async fn put(platform: &Platform, url: &str, blob: &Blob, path: &Path) -> Result<(), NodeError> {
    let what = format!("PUT {}", blob.name);
    let file = File::open(path).await.map_err(NodeError::io(path))?;
    let body = Body::wrap_stream(ReaderStream::with_capacity(file, 1 << 18));
    // Without a length the body would go in chunks, which object stores do not take.
    let request = platform.client().put(url).header(CONTENT_LENGTH, blob.bytes.0).body(body);
    // The address is a secret while it is good: no error may show it.
    let response = match request.send().await {
        Ok(response) => response,
        Err(source) => return Err(NodeError::Away { what, source: source.without_url() }),
    };
    match response.status() {
        status if status.is_success() => Ok(()),
        StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(()), // the same content is there already
        status if status.is_server_error() || matches!(status.as_u16(), 408 | 429) => {
            Err(NodeError::Busy { what, status: status.as_u16() })
        }
        status => {
            let body = response.text().await.unwrap_or_default().chars().take(300).collect();
            Err(NodeError::Refused { what, status: status.as_u16(), body })
        }
    }
}
