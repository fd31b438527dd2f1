//! `attune adapters pull`: an adapter's files into a folder, going on where an earlier pull was cut off.
//!
//! What has come lies in `FOLDER.part`. Each file is asked for from its first missing byte, and only if its content is
//! still the same; a folder is put in its place when every digest is right.

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

/// Pulls an adapter, and gives its record.
///
/// # Errors
/// [`CliError::Usage`]: the folder is there and is not this adapter. The API's; this machine's.
pub(crate) async fn pull(client: &Client, adapter: &str, folder: &Path) -> Result<Value> {
    let view = client.get(&["adapters", adapter]).await?;
    let files = view["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    if folder.exists() {
        return already(folder, files).map(|()| view);
    }
    let half = part_of(folder);
    fs::create_dir_all(&half).doing(|| format!("make the folder {}", half.display()))?;
    let bar = output::byte_bar("pulling", files.iter().filter_map(|file| file["bytes"].as_u64()).sum());
    let mut names = Vec::new();
    for file in files {
        names.push(plain_name(&file["name"])?);
        one(client, adapter, file, &half, &bar).await?;
    }
    bar.finish_and_clear();
    remove_others(&half, &names)?;
    fs::rename(&half, folder).doing(|| format!("put the folder {} in its place", folder.display()))?;
    Ok(view)
}

/// Where what has come lies.
fn part_of(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    folder.with_file_name(name)
}

/// A folder that is there must be this adapter, whole.
fn already(folder: &Path, files: &[Value]) -> Result<()> {
    for file in files {
        let path = folder.join(plain_name(&file["name"])?);
        if !path.is_file() || digest::of_file(&path, |_| {})? != output::text(&file["sha256"]) {
            let message =
                format!("{} is there already and is not this adapter; pull into another folder", folder.display());
            return Err(CliError::Usage(message));
        }
    }
    Ok(())
}

/// An earlier pull may have been of another adapter.
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
    if there == whole && digest::of_file(&path, |_| {}).is_ok_and(|found| found == wanted) {
        bar.inc(whole);
        return Ok(());
    }
    // As long as the whole, or longer, and yet not it: from the beginning.
    let there = if there < whole { there } else { 0 };
    fetch(client, &Rest { adapter, name, path: &path, there, wanted: &wanted }, bar).await?;
    let found = digest::of_file(&path, |_| {})?;
    if found == wanted {
        return Ok(());
    }
    fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
    let torn = format!("{name} came with SHA-256 {found} instead of {wanted}; it was thrown away, pull again");
    Err(CliError::Failed(torn))
}

/// What is still to come of a file.
struct Rest<'a> {
    adapter: &'a str,
    name: &'a str,
    /// Where it goes.
    path: &'a Path,
    /// So many bytes have come.
    there: u64,
    /// The digest of the whole.
    wanted: &'a str,
}

/// Fetches the rest; all of it if the platform has other content by now.
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
    fn a_folder_that_is_there_must_be_the_adapter() {
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
