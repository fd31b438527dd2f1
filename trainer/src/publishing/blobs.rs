//! Uploads files to the object store under their digests, through presigned URLs that the platform grants. Content that
//! is already stored is not sent again.

use std::{path::Path, time::Duration};

use attune_domain::{
    bytes::Bytes,
    run::{Blob, BlobGrant, BlobsWanted},
};
use attune_node::{NodeError, Platform, sha256_of_file};
use backon::Retryable;
use reqwest::{Body, header::CONTENT_LENGTH};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::report::patience;

/// The maximum delay between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(20);

/// Uploads every file of `folder`. Returns their names and digests, sorted by name, when all are stored.
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
        .notify(|why, _| tracing::warn!(%why, "the request for upload URLs failed; retrying"))
        .await?;
    for blob in &blobs {
        let granted = grants.iter().find(|grant| grant.sha256 == blob.sha256).ok_or_else(|| NodeError::Refused {
            what: "POST /internal/run/blobs".into(),
            status: 200,
            body: format!("no grant for {}", blob.name),
        })?;
        let Some(url) = &granted.url else { continue };
        let path = folder.join(&blob.name);
        (|| put(platform, url, blob, &path))
            .retry(patience(LONGEST_BACKOFF))
            .when(NodeError::is_passing)
            .notify(|why, _| tracing::warn!(%why, "an upload failed; retrying"))
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
    // Without a length the body would use chunked encoding, which object stores reject.
    let request = platform.client().put(url).header(CONTENT_LENGTH, blob.bytes.0).body(body);
    // A presigned URL is a credential until it expires: no error may contain it.
    let response = match request.send().await {
        Ok(response) => response,
        Err(source) => return Err(NodeError::Away { what, source: source.without_url() }),
    };
    match response.status() {
        status if status.is_success() => Ok(()),
        // A conflict with another operation on the object (409, 412) does not mean that the content is stored.
        status if status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 412 | 429) => {
            Err(NodeError::Busy { what, status: status.as_u16() })
        }
        status => {
            let body = response.text().await.unwrap_or_default().chars().take(300).collect();
            Err(NodeError::Refused { what, status: status.as_u16(), body })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    };

    use attune_domain::digest::Sha256;
    use attune_node::http_client;
    use axum::{Router, http::StatusCode};

    use super::*;

    #[tokio::test]
    async fn a_conflict_in_the_object_store_does_not_mean_that_the_content_is_stored() {
        let status = Arc::new(AtomicU16::new(0));
        let answer = status.clone();
        let app = Router::new().fallback(move || {
            let status = answer.load(Ordering::SeqCst);
            async move { StatusCode::from_u16(status).unwrap() }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let file = tempfile::NamedTempFile::new().unwrap();
        let platform = Platform::new(http_client().unwrap(), &url, "token".to_owned().into());
        let blob = Blob { name: "state".into(), sha256: Sha256::from_digest([0; 32]), bytes: Bytes(0) };
        for (code, is_passing) in [(409, true), (412, true), (503, true), (403, false)] {
            status.store(code, Ordering::SeqCst);
            let refused = put(&platform, &url, &blob, file.path()).await.unwrap_err();
            assert_eq!(refused.is_passing(), is_passing, "{code}: {refused}");
        }
        status.store(200, Ordering::SeqCst);
        put(&platform, &url, &blob, file.path()).await.unwrap();
    }
}
