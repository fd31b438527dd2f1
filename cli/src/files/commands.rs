//! `attune files`: datasets, in and out.

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

/// Commands about files.
#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// Upload a file; every row of a dataset is checked
    ///
    /// Datasets: JSONL, a JSON list, CSV, TSV or Parquet, also packed with gzip or zstd. Rows: chat, prompt/completion,
    /// text, alpaca, ShareGPT or preference; one shape per file.
    Upload {
        /// The file
        file: PathBuf,
        /// What it is for: fine-tune, batch, user_data or evals
        #[arg(long, default_value = "fine-tune")]
        purpose: String,
        /// After how many seconds it goes by itself, 3600 to 2592000 [default: when it is deleted]
        #[arg(long, value_name = "SECONDS")]
        expires_after: Option<u32>,
        /// Send it in parts of so many MiB, 1 to 64; a part that is cut off is sent again
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=64))]
        part_mib: Option<u64>,
    },
    /// List the uploaded files, newest first
    List {
        /// Only files for this purpose
        #[arg(long)]
        purpose: Option<String>,
    },
    /// Show one file's record
    Get {
        /// Its id, file-…
        id: String,
    },
    /// Print what is in it
    Content {
        /// Its id, file-…
        id: String,
    },
    /// Show rows as they would be trained on: each token, and whether it is learnt
    Preview(PreviewArgs),
    /// Say what a dataset is like: lengths in tokens, repeated rows, rows that look like mistakes
    Report(ReportArgs),
    /// Delete it; jobs that used it keep their results
    Delete {
        /// Its id, file-…
        id: String,
    },
}

/// Does it.
///
/// # Errors
/// [`CliError`]: this machine's, or the API's.
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
            output::table(&headings, rows.collect(), "No files yet: upload one with `attune files upload FILE`.")
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
        ("written as", written_as(&view["source"])),
        ("created", output::moment(&view["created_at"])),
        ("goes", if view["expires_at"].is_null() { String::new() } else { output::moment(&view["expires_at"]) }),
    ])
}

/// `alpaca rows in csv, gzip`.
fn written_as(source: &Value) -> String {
    if source.is_null() {
        return String::new();
    }
    let packed = source["compression"].as_str().map(|packed| format!(", {packed}")).unwrap_or_default();
    format!("{} rows in {}{packed}", output::text(&source["shape"]), output::text(&source["container"]))
}

/// What a file is called, if it is there.
fn name_of(path: &Path) -> Result<String> {
    if !path.is_file() {
        return Err(CliError::Usage(format!("there is no file {}", path.display())));
    }
    Ok(path.file_name().and_then(|name| name.to_str()).unwrap_or("data.jsonl").to_owned())
}

/// Uploads a file and gives its record.
///
/// # Errors
/// [`CliError::Usage`] if it is not there; else as [`run`].
pub(crate) async fn upload(client: &Client, path: &Path, purpose: &str, expires_after: Option<u32>) -> Result<Value> {
    let name = name_of(path)?;
    let bytes = std::fs::metadata(path).doing(|| format!("read {}", path.display()))?.len();
    let bar = output::byte_bar(&name, bytes);
    let (body, length) = Client::body(path, bar.clone()).await?;
    let part = Part::stream_with_length(body, length).file_name(name);
    // The purpose first: the API decides by it while the rows come in.
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
