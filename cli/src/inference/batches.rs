//! `attune batches`: many requests in one file, processed asynchronously.

use std::path::PathBuf;

use clap::Subcommand;
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    files::commands as files,
    output,
};

/// The subcommands of `attune batches`.
#[derive(Debug, Subcommand)]
pub(crate) enum BatchesCommand {
    /// Create a batch from a JSONL file of requests, each with custom_id, method, url and body
    Create {
        /// A local file, or the ID of a file that was uploaded with the purpose `batch`, file-…
        input: String,
        /// The endpoint of the requests
        #[arg(long, default_value = "/v1/chat/completions")]
        endpoint: String,
        /// Wait until the batch has ended
        #[arg(long)]
        watch: bool,
    },
    /// List the batches, newest first
    List,
    /// Retrieve a batch
    #[command(alias = "get")]
    Show {
        /// The batch's ID, batch_…
        id: String,
        /// Wait until the batch has ended
        #[arg(long)]
        watch: bool,
    },
    /// Cancel a batch; completed responses are kept
    Cancel {
        /// The batch's ID, batch_…
        id: String,
    },
    /// Print the responses of a batch that has ended, as JSONL
    Results {
        /// The batch's ID, batch_…
        id: String,
        /// Print the errors instead
        #[arg(long)]
        errors: bool,
        /// Write to this file instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: BatchesCommand, as_json: bool) -> Result<()> {
    match command {
        BatchesCommand::Create { input, endpoint, watch } => {
            let file = if input.starts_with("file-") {
                input
            } else {
                output::text(&files::upload(client, PathBuf::from(input).as_path(), "batch", None).await?["id"])
            };
            let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"});
            let view = client.json(client.request(Method::POST, &["batches"]).json(&body)).await?;
            let view = if watch { ended(client, &output::text(&view["id"])).await? } else { view };
            if as_json { output::json(&view) } else { show(&view) }
        }
        BatchesCommand::List => {
            let batches = client.list(&["batches"], None).await?;
            if as_json { output::json(&batches) } else { table(&batches) }
        }
        BatchesCommand::Show { id, watch } => {
            let view = if watch { ended(client, &id).await? } else { client.get(&["batches", &id]).await? };
            if as_json { output::json(&view) } else { show(&view) }
        }
        BatchesCommand::Cancel { id } => {
            let view = client.json(client.request(Method::POST, &["batches", &id, "cancel"])).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        BatchesCommand::Results { id, errors, out } => results(client, &id, errors, out).await,
    }
}

async fn ended(client: &Client, id: &str) -> Result<Value> {
    loop {
        let view = client.get(&["batches", id]).await?;
        if ["completed", "failed", "expired", "cancelled"].contains(&view["status"].as_str().unwrap_or("")) {
            return Ok(view);
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

async fn results(client: &Client, id: &str, errors: bool, out: Option<PathBuf>) -> Result<()> {
    let view = client.get(&["batches", id]).await?;
    let field = if errors { "error_file_id" } else { "output_file_id" };
    let Some(file) = view[field].as_str() else {
        let (status, what) = (output::text(&view["status"]), if errors { "errors" } else { "responses" });
        return Err(CliError::Failed(format!("the batch is {status} and has no file of {what}")));
    };
    let answer = client.send(client.request(Method::GET, &["files", file, "content"])).await?;
    let mut stream = answer.bytes_stream();
    let cannot = || "write the responses".to_owned();
    let mut sink: Box<dyn tokio::io::AsyncWrite + Unpin> = match &out {
        Some(path) => Box::new(tokio::fs::File::create(path).await.doing(|| format!("write {}", path.display()))?),
        None => Box::new(tokio::io::stdout()),
    };
    while let Some(bytes) = stream.next().await {
        sink.write_all(&bytes.map_err(|e| client.unreachable(&e))?).await.doing(cannot)?;
    }
    sink.flush().await.doing(cannot)
}

fn counts(view: &Value) -> String {
    let counts = &view["request_counts"];
    let number = |name: &str| output::text(&counts[name]);
    format!("{} of {}, {} failed", number("completed"), number("total"), number("failed"))
}

fn table(batches: &Value) -> Result<()> {
    let rows = batches["data"].as_array().into_iter().flatten().map(|batch| {
        vec![
            output::text(&batch["id"]),
            output::text(&batch["status"]),
            counts(batch),
            output::moment(&batch["created_at"]),
        ]
    });
    let none = "No batches yet. Create one with `attune batches create FILE`.";
    output::table(&["BATCH", "STATUS", "COMPLETED", "CREATED (UTC)"], rows.collect(), none)
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("batch", output::text(&view["id"])),
        ("status", output::text(&view["status"])),
        ("completed", counts(view)),
        ("endpoint", output::text(&view["endpoint"])),
        ("input", output::text(&view["input_file_id"])),
        ("output", output::text(&view["output_file_id"])),
        ("errors", output::text(&view["error_file_id"])),
        ("created", output::moment(&view["created_at"])),
        ("expires", output::moment(&view["expires_at"])),
    ])?;
    for error in view["errors"]["data"].as_array().into_iter().flatten() {
        let place = error["line"].as_u64().map_or_else(String::new, |line| format!("line {line}: "));
        output::line(&format!("{place}{}", output::text(&error["message"])))?;
    }
    Ok(())
}
