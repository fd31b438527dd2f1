//! `attune adapters residency` and `prefetch`: where replicas have a version.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{connection::client::Client, error::Result, output};

/// The commands of `attune adapters` about replicas.
#[derive(Debug, Subcommand)]
pub(crate) enum ResidencyCommand {
    /// Show where the replicas have an adapter version: in memory, on disk, or in the object store
    Residency {
        /// The version, as for `show`
        adapter: String,
    },
    /// Load a version on all replicas of its base ahead of requests, and evict others first for some time
    Prefetch {
        /// The version, as for `show`
        adapter: String,
        /// The time for which it is kept, from 60 to 86400. Default: 600
        #[arg(long, value_name = "N")]
        seconds: Option<i64>,
    },
}

/// Runs the command.
///
/// # Errors
/// Errors of the API.
pub(crate) async fn run(client: &Client, command: ResidencyCommand, as_json: bool) -> Result<()> {
    let request = match &command {
        ResidencyCommand::Residency { adapter } => client.request(Method::GET, &["adapters", adapter, "residency"]),
        ResidencyCommand::Prefetch { adapter, seconds } => {
            let body = seconds.map_or_else(|| json!({}), |seconds| json!({"seconds": seconds}));
            client.request(Method::POST, &["adapters", adapter, "prefetch"]).json(&body)
        }
    };
    let view = client.json(request).await?;
    if as_json { output::json(&view) } else { show(&view) }
}

fn show(view: &Value) -> Result<()> {
    let until = output::moment(&view["prefetched_until"]);
    output::fields(&[("model", output::text(&view["model"])), ("prefetched until", until)])?;
    let rows = view["replicas"].as_array().into_iter().flatten().map(|replica| {
        let text = |name: &str| output::text(&replica[name]);
        vec![
            text("replica"),
            text("status"),
            text("tier"),
            output::bytes(&replica["bytes"]),
            text("requests"),
            text("load_ms"),
            output::moment(&replica["last_used_at"]),
        ]
    });
    let headings = ["REPLICA", "STATUS", "TIER", "BYTES", "REQUESTS", "LOAD MS", "LAST USED"];
    output::table(&headings, rows.collect(), "No replica of its base is ready.")
}
