//! `attune adapters pull`: downloads an adapter version's files into a folder, and resumes an interrupted pull.
//!
//! Downloads are stored in `FOLDER.part`. Each file is requested from its first missing byte (`Range`), and as a whole
//! if its content has changed (`If-Range`). The folder is renamed to `FOLDER` once all digests match.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

use futures::StreamExt;
use indicatif::ProgressBar;
use reqwest::{
    Method, StatusCode,
    header::{IF_RANGE, RANGE},
};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::{
    adapters::plain_name::plain_name,
    connection::client::Client,
    error::{CliError, Doing, Result},
    files::digest,
    output,
};

/// Pulls an adapter version and returns its API object.
///
/// # Errors
/// [`CliError::Usage`]: the folder exists and does not hold this adapter version. Errors of the API; local errors.
pub(crate) async fn pull(client: &Client, adapter: &str, folder: &Path) -> Result<Value> {
    let view = client.get(&["adapters", adapter]).await?;
    let files = view["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    if folder.exists() {
        return already(folder, files).map(|()| view);
    }
    let half = part_of(folder);
    fs::create_dir_all(&half).doing(|| format!("create the folder {}", half.display()))?;
    let bar = output::byte_bar("pulling", files.iter().filter_map(|file| file["bytes"].as_u64()).sum());
    let mut names = Vec::new();
    for file in files {
        names.push(plain_name(&file["name"])?);
        one(client, adapter, file, &half, &bar).await?;
    }
    bar.finish_and_clear();
    remove_others(&half, &names)?;
    fs::rename(&half, folder).doing(|| format!("rename the download to {}", folder.display()))?;
    Ok(view)
}

/// Returns `FOLDER.part`, the folder of incomplete downloads.
fn part_of(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    folder.with_file_name(name)
}

/// Checks that an existing folder holds all files of the adapter version.
fn already(folder: &Path, files: &[Value]) -> Result<()> {
    for file in files {
        let path = folder.join(plain_name(&file["name"])?);
        if !path.is_file() || digest::of_file(&path, |_| {})?.to_string() != output::text(&file["sha256"]) {
            let message =
                format!("{} exists already and is not this adapter. Pull into another folder.", folder.display());
            return Err(CliError::Usage(message));
        }
    }
    Ok(())
}

/// Removes files that are not part of the adapter version: an earlier pull may have been of another adapter.
fn remove_others(folder: &Path, names: &[&str]) -> Result<()> {
    for entry in fs::read_dir(folder).doing(|| format!("read {}", folder.display()))? {
        let entry = entry.doing(|| format!("read {}", folder.display()))?;
        if !names.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path()).doing(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

async fn one(client: &Client, adapter: &str, file: &Value, folder: &Path, bar: &ProgressBar) -> Result<()> {
    let name = plain_name(&file["name"])?;
    let path = folder.join(name);
    let (whole, wanted) = (file["bytes"].as_u64().unwrap_or(0), output::text(&file["sha256"]));
    let there = fs::metadata(&path).map_or(0, |metadata| metadata.len());
    if there == whole && digest::of_file(&path, |_| {}).is_ok_and(|found| found.to_string() == wanted) {
        bar.inc(whole);
        return Ok(());
    }
    // A file of at least the full length with another digest is downloaded from the beginning.
    let there = if there < whole { there } else { 0 };
    fetch(client, &Rest { adapter, name, path: &path, there, wanted: &wanted }, bar).await?;
    let found = digest::of_file(&path, |_| {})?.to_string();
    if found == wanted {
        return Ok(());
    }
    fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
    let torn = format!("{name} has SHA-256 {found}, expected {wanted}. The file was removed; pull again.");
    Err(CliError::Failed(torn))
}

/// A file's download, from the first missing byte on.
struct Rest<'a> {
    adapter: &'a str,
    name: &'a str,
    /// The local path.
    path: &'a Path,
    /// The number of bytes that are downloaded already.
    there: u64,
    /// The SHA-256 of the whole file, in hex.
    wanted: &'a str,
}

/// Downloads the missing bytes, or the whole file if its content has changed.
async fn fetch(client: &Client, rest: &Rest<'_>, bar: &ProgressBar) -> Result<()> {
    let Rest { adapter, name, path, there, wanted } = *rest;
    let mut request = client.request(Method::GET, &["adapters", adapter, "files", name]);
    if there > 0 {
        request = request.header(RANGE, format!("bytes={there}-")).header(IF_RANGE, format!("\"{wanted}\""));
    }
    let answer = client.send(request).await?;
    let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT;
    let cannot = || format!("write {}", path.display());
    let file =
        OpenOptions::new().create(true).write(true).append(goes_on).truncate(!goes_on).open(path).doing(cannot)?;
    let mut out = tokio::fs::File::from_std(file);
    bar.inc(if goes_on { there } else { 0 });
    let mut stream = answer.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| client.unreachable(&e))?;
        out.write_all(&bytes).await.doing(cannot)?;
        bar.inc(bytes.len() as u64);
    }
    out.sync_all().await.doing(cannot)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_folder_that_exists_must_be_the_adapter() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "abc").unwrap();
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        already(folder.path(), &[json!({"name": "a", "sha256": sha})]).unwrap();
        for other in [json!({"name": "a", "sha256": "0"}), json!({"name": "b", "sha256": sha})] {
            assert_eq!(already(folder.path(), &[other]).unwrap_err().exit_code(), 2);
        }
        assert_eq!(part_of(Path::new("x/adapter.v1")), Path::new("x/adapter.v1.part"));
    }
}
