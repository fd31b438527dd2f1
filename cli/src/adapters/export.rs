//! `attune adapters export`: downloads of a version's files, and of an export's.

use std::path::Path;

use futures::StreamExt;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::{
    adapters::plain_name::plain_name,
    connection::client::Client,
    error::{CliError, Doing, Result},
    files::digest,
    output,
};

/// Exports a version into `folder`, which is either complete or missing afterwards.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn folder(client: &Client, adapter: &str, folder: &Path) -> Result<Value> {
    refuse_existing(folder)?;
    let view = client.get(&["adapters", adapter]).await?;
    download(client, &["adapters", adapter, "files"], &view, folder).await?;
    Ok(view)
}

/// Refuses a folder that has content.
///
/// # Errors
/// [`CliError::Usage`].
pub(crate) fn refuse_existing(folder: &Path) -> Result<()> {
    let there = folder.exists();
    if there && std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_some()) {
        let taken =
            format!("{} exists already and is not empty. Export into a new or an empty folder.", folder.display());
        return Err(CliError::Usage(taken));
    }
    Ok(())
}

/// Downloads the files of a view, each from this path and its name, into `folder`. Writes a temporary folder next to
/// it, checks every digest and then renames it.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn download(client: &Client, path: &[&str], view: &Value, folder: &Path) -> Result<()> {
    let files = view["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let total = files.iter().filter_map(|file| file["bytes"].as_u64()).sum();
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).doing(|| format!("create the folder {}", parent.display()))?;
    let half = tempfile::Builder::new().prefix(".attune-export-").tempdir_in(parent);
    let half = half.doing(|| format!("create a folder in {}", parent.display()))?;
    let whole = half.path().join("adapter");
    std::fs::create_dir(&whole).doing(|| format!("create the folder {}", whole.display()))?;
    let bar = output::byte_bar("exporting", total);
    for file in files {
        download_file(client, path, file, (&whole, &bar)).await?;
    }
    bar.finish_and_clear();
    // A rename onto an empty folder replaces it; onto a folder with content it fails.
    std::fs::rename(&whole, folder).doing(|| format!("rename the export to {}", folder.display()))
}

/// Exports a version as the tar archive `file`. Writes a temporary file next to it and then renames it, so that `file`
/// is either complete or missing.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn archive(client: &Client, adapter: &str, file: &Path) -> Result<Value> {
    if file.exists() {
        return Err(CliError::Usage(format!("{} exists already. Use the name of a new file.", file.display())));
    }
    let view = client.get(&["adapters", adapter]).await?;
    let id = output::text(&view["id"]); // an alias may be moved in the meantime
    let answer = client.send(client.request(Method::GET, &["adapters", &id, "export"])).await?;
    let total = answer.content_length().unwrap_or(0);
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).doing(|| format!("create the folder {}", parent.display()))?;
    let half = tempfile::Builder::new().prefix(".attune-export-").tempfile_in(parent);
    let half = half.doing(|| format!("create a file in {}", parent.display()))?;
    let cannot = || format!("write {}", file.display());
    let mut out = tokio::fs::File::from_std(half.reopen().doing(cannot)?);
    let bar = output::byte_bar("exporting", total);
    let mut stream = answer.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| client.unreachable(&e))?;
        out.write_all(&bytes).await.doing(cannot)?;
        bar.inc(bytes.len() as u64);
    }
    out.sync_all().await.doing(cannot)?;
    bar.finish_and_clear();
    half.persist_noclobber(file).map_err(|e| e.error).doing(cannot)?;
    Ok(view)
}

async fn download_file(
    client: &Client,
    path: &[&str],
    file: &Value,
    (folder, bar): (&Path, &ProgressBar),
) -> Result<()> {
    let name = plain_name(&file["name"])?;
    let mut path = path.to_vec();
    path.push(name);
    let answer = client.send(client.request(Method::GET, &path)).await?;
    let path = folder.join(name);
    let cannot = || format!("write {}", path.display());
    let mut out = tokio::fs::File::create(&path).await.doing(cannot)?;
    let mut running = digest::Running::default();
    let mut stream = answer.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| client.unreachable(&e))?;
        running.add(&bytes);
        out.write_all(&bytes).await.doing(cannot)?;
        bar.inc(bytes.len() as u64);
    }
    out.sync_all().await.doing(cannot)?;
    let found = running.finish().to_string();
    let expected = output::text(&file["sha256"]);
    if found != expected {
        let torn = format!("{name} has SHA-256 {found}, expected {expected}. Nothing was written; try again.");
        return Err(CliError::Failed(torn));
    }
    Ok(())
}
