//! `attune files upload --part-mib`: multipart uploads, for unreliable connections.

use std::path::Path;

use attune_domain::digest::hex;
use md5::{Digest, Md5};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    output,
};

/// The maximum number of attempts to upload a part.
const TRIES: u32 = 4;

/// Uploads the file in parts of `part_bytes` and returns its API object. Cancels the upload if a part fails.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn upload(
    client: &Client,
    path: &Path,
    (name, purpose): (String, &str),
    expires_after: Option<u32>,
    part_bytes: u64,
) -> Result<Value> {
    let bytes = std::fs::metadata(path).doing(|| format!("read {}", path.display()))?.len();
    let mut body =
        json!({"filename": name, "purpose": purpose, "bytes": bytes, "mime_type": "application/octet-stream"});
    if let Some(seconds) = expires_after {
        body["expires_after"] = json!({"anchor": "created_at", "seconds": seconds});
    }
    let begun = client.json(client.request(Method::POST, &["uploads"]).json(&body)).await?;
    let id = begun["id"].as_str().unwrap_or_default();
    let bar = output::byte_bar(&name, bytes);
    let sent = send(client, id, path, part_bytes, &bar).await;
    bar.finish_and_clear();
    let step = |name| client.request(Method::POST, &["uploads", id, name]);
    let completed = match sent {
        Ok(parts) => client.json(step("complete").json(&parts)).await,
        Err(error) => Err(error),
    };
    match completed {
        Ok(mut upload) => Ok(upload["file"].take()),
        Err(error) => {
            // An upload that is not cancelled expires within the hour; the first error is the one to report.
            drop(client.json(step("cancel")).await);
            Err(error)
        }
    }
}

/// Uploads the parts in order; returns the body of the request that completes the upload.
async fn send(client: &Client, id: &str, path: &Path, part_bytes: u64, bar: &indicatif::ProgressBar) -> Result<Value> {
    let reading = || format!("read {}", path.display());
    let mut file = tokio::fs::File::open(path).await.doing(reading)?;
    let (mut ids, mut md5) = (Vec::new(), Md5::new());
    loop {
        let mut part = Vec::new();
        (&mut file).take(part_bytes).read_to_end(&mut part).await.doing(reading)?;
        if part.is_empty() {
            break;
        }
        md5.update(&part);
        bar.inc(part.len() as u64);
        ids.push(send_part(client, id, part.into()).await?);
    }
    Ok(json!({"part_ids": ids, "md5": hex(&md5.finalize())}))
}

/// Uploads a part and returns its ID; retries if the connection fails.
async fn send_part(client: &Client, id: &str, part: bytes::Bytes) -> Result<Value> {
    let mut tries = 1;
    loop {
        let length = part.len() as u64;
        let form = Form::new().part("data", Part::stream_with_length(part.clone(), length).file_name("part"));
        match client.json(client.request(Method::POST, &["uploads", id, "parts"]).multipart(form)).await {
            Err(CliError::Unreachable { .. }) if tries < TRIES => {
                tokio::time::sleep(std::time::Duration::from_secs(1 << tries)).await;
                tries += 1;
            }
            Err(error) => return Err(error),
            Ok(mut view) => return Ok(view["id"].take()),
        }
    }
}
