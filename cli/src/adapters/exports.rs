//! `attune adapters exports`, and exports in forms that a node writes: requested, awaited, downloaded.

use std::{path::Path, time::Duration};

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    adapters::export::{download, refuse_existing},
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// The interval between two polls.
const POLL: Duration = Duration::from_secs(1);

/// The subcommands of `attune adapters exports`.
#[derive(Debug, Subcommand)]
pub(crate) enum ExportsCommand {
    /// List exports, newest first
    List,
    /// Retrieve an export: its status, its files, and the programs that load it
    Show {
        /// The export's ID
        id: String,
    },
    /// Delete an export and its files; one that is being written is stopped
    Delete {
        /// The export's ID
        id: String,
    },
}

/// The form of a requested export.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The format.
    pub(crate) format: &'static str,
    /// The number type of the weights.
    pub(crate) dtype: Option<String>,
    /// The base weights that the adapter is merged into.
    pub(crate) base_weights: Option<String>,
    /// The maximum size of a file of merged weights.
    pub(crate) shard_bytes: Option<u64>,
    /// Flag to use an importance matrix.
    pub(crate) imatrix: bool,
    /// The ID of the file that the importance matrix is computed from.
    pub(crate) imatrix_file: Option<String>,
}

impl Wanted {
    /// Returns the request body; fields that are not set are left out.
    fn body(&self) -> Value {
        let mut body = json!({"format": self.format});
        let fields =
            [("dtype", &self.dtype), ("base_weights", &self.base_weights), ("imatrix_file", &self.imatrix_file)];
        for (name, value) in fields {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        if let Some(bytes) = self.shard_bytes {
            body["shard_bytes"] = json!(bytes);
        }
        if self.imatrix {
            body["imatrix"] = json!(true);
        }
        body
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: those of the API.
pub(crate) async fn run(client: &Client, command: ExportsCommand, as_json: bool) -> Result<()> {
    match command {
        ExportsCommand::List => {
            let exports = client.list(&["exports"], None).await?;
            if as_json { output::json(&exports) } else { table(&exports) }
        }
        ExportsCommand::Show { id } => {
            let view = client.get(&["exports", &id]).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        ExportsCommand::Delete { id } => {
            let deleted = client.json(client.request(Method::DELETE, &["exports", &id])).await?;
            if as_json { output::json(&deleted) } else { output::line(&format!("{id} is deleted")) }
        }
    }
}

/// Requests an export, waits until it has ended, and downloads its files into `folder`.
///
/// # Errors
/// [`CliError::Failed`]: the export failed. Local errors, or those of the API.
pub(crate) async fn export(client: &Client, adapter: &str, wanted: &Wanted, folder: &Path) -> Result<Value> {
    refuse_existing(folder)?;
    let request = client.request(Method::POST, &["adapters", adapter, "exports"]).json(&wanted.body());
    let mut view = client.json(request).await?;
    let id = output::text(&view["id"]);
    let bar = output::byte_bar("writing", 1000);
    while matches!(view["status"].as_str(), Some("queued" | "running")) {
        tokio::time::sleep(POLL).await;
        view = client.get(&["exports", &id]).await?;
        bar.set_position((view["progress"].as_f64().unwrap_or(0.0) * 1000.0) as u64);
    }
    bar.finish_and_clear();
    if view["status"] != "succeeded" {
        return Err(CliError::Failed(format!("the export {id} failed: {}", output::text(&view["error"]["message"]))));
    }
    download(client, &["exports", &id, "files"], &view, folder).await?;
    Ok(view)
}

fn table(exports: &Value) -> Result<()> {
    let rows = exports["data"].as_array().into_iter().flatten().map(|export| {
        vec![
            output::text(&export["id"]),
            output::text(&export["model"]),
            output::text(&export["format"]),
            output::text(&export["status"]),
            output::bytes(&export["bytes"]),
            output::moment(&export["created_at"]),
        ]
    });
    let headings = ["EXPORT", "MODEL", "FORMAT", "STATUS", "SIZE", "CREATED (UTC)"];
    output::table(&headings, rows.collect(), "No exports. Create one with `attune adapters export --format merged`.")
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("export", output::text(&view["id"])),
        ("model", output::text(&view["model"])),
        ("format", format!("{} ({})", output::text(&view["format"]), output::text(&view["dtype"]))),
        ("imatrix", output::text(&view["imatrix_file"])),
        ("status", output::text(&view["status"])),
        ("waits", output::text(&view["waiting_reason"])),
        ("error", output::text(&view["error"]["message"])),
        ("drift", output::text(&view["drift"]["max_logit_difference"])),
        ("expires", output::moment(&view["expires_at"])),
    ])?;
    for label in view["loads_with"].as_array().into_iter().flatten() {
        let loads = if label["loads"] == true { "loads" } else { "does not load" };
        let (program, note) = (output::text(&label["program"]), output::text(&label["note"]));
        output::line(&format!("{program} {loads} it: {note}"))?;
    }
    for file in view["files"].as_array().into_iter().flatten() {
        let (name, size) = (output::text(&file["name"]), output::bytes(&file["bytes"]));
        output::line(&format!("file   {name}  {size}  sha256 {}", output::text(&file["sha256"])))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_only_the_fields_that_are_set() {
        let plain = Wanted {
            format: "gguf",
            dtype: None,
            base_weights: None,
            shard_bytes: None,
            imatrix: false,
            imatrix_file: None,
        };
        assert_eq!(plain.body(), json!({"format": "gguf"}));
        let weighted = Wanted { imatrix: true, imatrix_file: Some("file-1".into()), ..plain };
        assert_eq!(weighted.body(), json!({"format": "gguf", "imatrix": true, "imatrix_file": "file-1"}));
        let whole = Wanted {
            format: "merged",
            dtype: Some("f16".into()),
            base_weights: Some("original".into()),
            shard_bytes: Some(1 << 20),
            imatrix: false,
            imatrix_file: None,
        };
        let wanted = json!({"format": "merged", "dtype": "f16", "base_weights": "original", "shard_bytes": 1_048_576});
        assert_eq!(whole.body(), wanted);
    }
}
