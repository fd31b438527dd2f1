//! `attune files`: uploads, inspects, downloads and deletes files.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use futures::StreamExt;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    files::{
        preview::{self, PreviewArgs},
        report::{self, ReportArgs},
        uploads,
    },
    output,
};

/// The subcommands of `attune files`.
#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// Upload a file; the API checks every row of a dataset
    ///
    /// Datasets: JSONL, a JSON list, CSV, TSV or Parquet, optionally compressed with gzip or zstd. Rows: chat,
    /// prompt/completion, text, alpaca, ShareGPT or preference; one format per file.
    Upload {
        /// The file
        file: PathBuf,
        /// The file's purpose: fine-tune, batch, user_data or evals
        #[arg(long, default_value = "fine-tune")]
        purpose: String,
        /// The seconds after which the file expires, 3600 to 2592000 [default: never]
        #[arg(long, value_name = "SECONDS")]
        expires_after: Option<u32>,
        /// Upload in parts of this size in MiB, 1 to 64; an interrupted part is retried
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=64))]
        part_mib: Option<u64>,
    },
    /// List the uploaded files, newest first
    List {
        /// List only files with this purpose
        #[arg(long)]
        purpose: Option<String>,
    },
    /// Retrieve a file
    Get {
        /// The file's ID, file-…
        id: String,
    },
    /// Print a file's content
    Content {
        /// The file's ID, file-…
        id: String,
    },
    /// Preview rows as a job would train on them, with the trained tokens marked
    Preview(PreviewArgs),
    /// Report a dataset's lengths in tokens, duplicate rows, and rows that look like mistakes
    Report(ReportArgs),
    /// Delete a file; jobs that used it keep their results
    Delete {
        /// The file's ID, file-…
        id: String,
    },
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: FilesCommand, as_json: bool) -> Result<()> {
    match command {
        FilesCommand::Upload { file, purpose, expires_after, part_mib } => {
            let view = match part_mib {
                None => upload(client, &file, &purpose, expires_after).await?,
                Some(mib) => {
                    let named = (name_of(&file)?, purpose.as_str());
                    uploads::upload(client, &file, named, expires_after, mib << 20).await?
                }
            };
            if as_json { output::json(&view) } else { show(&view) }
        }
        FilesCommand::List { purpose } => {
            let mut files = client.list(&["files"], None).await?;
            if let (Some(purpose), Some(all)) = (purpose, files["data"].as_array_mut()) {
                all.retain(|file| file["purpose"] == purpose.as_str());
            }
            if as_json {
                return output::json(&files);
            }
            let rows = files["data"].as_array().into_iter().flatten().map(|file| {
                vec![
                    output::text(&file["id"]),
                    output::text(&file["filename"]),
                    output::bytes(&file["bytes"]),
                    output::text(&file["purpose"]),
                    output::moment(&file["created_at"]),
                ]
            });
            let headings = ["FILE", "NAME", "SIZE", "PURPOSE", "CREATED (UTC)"];
            output::table(&headings, rows.collect(), "No files yet. Upload one with `attune files upload FILE`.")
        }
        FilesCommand::Get { id } => {
            let view = client.get(&["files", &id]).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        FilesCommand::Content { id } => content(client, &id).await,
        FilesCommand::Preview(args) => preview::run(client, args, as_json).await,
        FilesCommand::Report(args) => report::run(client, args, as_json).await,
        FilesCommand::Delete { id } => {
            let view = client.json(client.request(Method::DELETE, &["files", &id])).await?;
            if as_json { output::json(&view) } else { output::line(&format!("deleted {id}")) }
        }
    }
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("file", output::text(&view["id"])),
        ("name", output::text(&view["filename"])),
        ("size", output::bytes(&view["bytes"])),
        ("purpose", output::text(&view["purpose"])),
        ("status", output::text(&view["status"])),
        ("rows", output::text(&view["rows"])),
        ("format", written_as(&view["source"])),
        ("created", output::moment(&view["created_at"])),
        ("expires", if view["expires_at"].is_null() { String::new() } else { output::moment(&view["expires_at"]) }),
    ])
}

/// Formats a dataset's source, such as `alpaca rows in csv, gzip`.
fn written_as(source: &Value) -> String {
    if source.is_null() {
        return String::new();
    }
    let packed = source["compression"].as_str().map(|packed| format!(", {packed}")).unwrap_or_default();
    format!("{} rows in {}{packed}", output::text(&source["shape"]), output::text(&source["container"]))
}

/// Returns a file's name; the file must exist.
fn name_of(path: &Path) -> Result<String> {
    if !path.is_file() {
        return Err(CliError::Usage(format!("there is no file {}", path.display())));
    }
    Ok(path.file_name().and_then(|name| name.to_str()).unwrap_or("data.jsonl").to_owned())
}

/// Uploads a file and returns its API object.
///
/// # Errors
/// [`CliError::Usage`] if the file does not exist; otherwise as [`run`].
pub(crate) async fn upload(client: &Client, path: &Path, purpose: &str, expires_after: Option<u32>) -> Result<Value> {
    let name = name_of(path)?;
    let bytes = std::fs::metadata(path).doing(|| format!("read {}", path.display()))?.len();
    let bar = output::byte_bar(&name, bytes);
    let (body, length) = Client::body(path, bar.clone()).await?;
    let part = Part::stream_with_length(body, length).file_name(name);
    // The purpose comes first: the API needs it while it streams the file.
    let mut form = Form::new().text("purpose", purpose.to_owned());
    if let Some(seconds) = expires_after {
        form = form.text("expires_after[anchor]", "created_at").text("expires_after[seconds]", seconds.to_string());
    }
    let form = form.part("file", part);
    let answer = client.json(client.request(Method::POST, &["files"]).multipart(form)).await;
    bar.finish_and_clear();
    answer
}

async fn content(client: &Client, id: &str) -> Result<()> {
    let answer = client.send(client.request(Method::GET, &["files", id, "content"])).await?;
    let mut stream = answer.bytes_stream();
    let mut stdout = tokio::io::stdout();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| client.unreachable(&e))?;
        match stdout.write_all(&bytes).await {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.doing(|| "write to stdout".into())?,
        }
    }
    stdout.flush().await.doing(|| "write to stdout".into())
}
