//! The download of one file from the object store: streamed to disk, resumed after a connection error, and checked
//! against the announced digest.

use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
    time::Duration,
};

use attune_domain::{digest::Sha256, run::RemoteFile};
use backon::{ExponentialBuilder, Retryable};
use reqwest::{Client, Response, StatusCode, header::RANGE};
use sha2::Digest;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

use crate::{error::NodeError, platform::sorted};

/// Fetches `file` into the folder `into` and returns its path. A broken download is resumed, for about two minutes; an
/// existing file of that name is overwritten.
///
/// # Errors
/// [`NodeError::Changed`]: the content has another digest or length; it is deleted. [`NodeError::DiskFull`],
/// [`NodeError::Io`], [`NodeError::Away`], [`NodeError::Busy`], [`NodeError::Refused`] (an expired URL, for example),
/// [`NodeError::BadName`].
pub async fn fetch(client: &Client, file: &RemoteFile, into: &Path) -> Result<PathBuf, NodeError> {
    let path = into.join(plain_name(&file.name)?);
    let mut kept = File::create(&path).await.map_err(NodeError::io(&path))?;
    drop(kept);
    let line = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(15))
        .with_max_times(14)
        .with_jitter();
    let outcome = (|| go_on(client, file, &path))
        .retry(line)
        .when(NodeError::is_passing)
        .notify(|why, _| tracing::warn!(file.name = %file.name, %why, "the download was interrupted; resuming"))
        .await;
    let outcome = match outcome {
        Ok(()) => check(file, &path).await,
        Err(why) => Err(why),
    };
    if outcome.is_err() {
        // The first error is returned.
        let _ = tokio::fs::remove_file(&path).await;
    } else {
        kept = File::open(&path).await.map_err(NodeError::io(&path))?;
        kept.sync_all().await.map_err(NodeError::io(&path))?;
    }
    outcome.map(|()| path)
}

/// Returns the name if it cannot lead outside its folder.
pub(crate) fn plain_name(name: &str) -> Result<&str, NodeError> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
    if plain { Ok(name) } else { Err(NodeError::BadName(name.into())) }
}

/// Downloads and appends the missing bytes.
async fn go_on(client: &Client, file: &RemoteFile, path: &Path) -> Result<(), NodeError> {
    let what = format!("GET {}", file.name);
    let mut kept = File::options().write(true).open(path).await.map_err(NodeError::io(path))?;
    let have = kept.seek(SeekFrom::End(0)).await.map_err(NodeError::io(path))?;
    if have == file.bytes.0 {
        return Ok(());
    }
    let mut request = client.get(&file.url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    // A presigned URL is a secret while it is valid: no error may contain it.
    let away = |source: reqwest::Error| NodeError::Away { what: what.clone(), source: source.without_url() };
    let mut response = of_store(&what, request.send().await.map_err(away)?).await?;
    let mut have = have;
    if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        kept.set_len(0).await.map_err(NodeError::io(path))?;
        have = kept.seek(SeekFrom::Start(0)).await.map_err(NodeError::io(path))?;
    }
    while let Some(part) = response.chunk().await.map_err(away)? {
        have += part.len() as u64;
        if have > file.bytes.0 {
            return Err(changed_length(file, have));
        }
        kept.write_all(&part).await.map_err(NodeError::io(path))?;
    }
    // tokio's file writes in the background; an error such as a full disk appears only here.
    kept.flush().await.map_err(NodeError::io(path))
}

/// Returns a successful response of the object store, or the error for its status. From the store, 409 and 412 report a
/// conflict with another operation on the object, which passes; from the platform, 409 is the end of the run.
async fn of_store(what: &str, response: Response) -> Result<Response, NodeError> {
    match response.status().as_u16() {
        status @ (409 | 412) => Err(NodeError::Busy { what: what.to_owned(), status }),
        _ => sorted(what, response).await,
    }
}

async fn check(file: &RemoteFile, path: &Path) -> Result<(), NodeError> {
    let (got, length) = sha256_of_file(path).await?;
    if length != file.bytes.0 {
        return Err(changed_length(file, length));
    }
    if got == file.sha256 {
        return Ok(());
    }
    Err(NodeError::Changed { name: file.name.clone(), want: format!("SHA-256 {}", file.sha256), got: got.to_string() })
}

fn changed_length(file: &RemoteFile, got: u64) -> NodeError {
    NodeError::Changed { name: file.name.clone(), want: format!("{} bytes", file.bytes.0), got: format!("{got} bytes") }
}

/// Computes the SHA-256 of a file, and its length.
///
/// # Errors
/// [`NodeError::Io`].
pub async fn sha256_of_file(path: &Path) -> Result<(Sha256, u64), NodeError> {
    let mut file = File::open(path).await.map_err(NodeError::io(path))?;
    let mut hash = sha2::Sha256::new();
    let mut part = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let count = file.read(&mut part).await.map_err(NodeError::io(path))?;
        if count == 0 {
            break;
        }
        hash.update(&part[..count]);
        length += count as u64;
    }
    Ok((Sha256::from_digest(hash.finalize().into()), length))
}
