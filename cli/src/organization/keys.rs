//! `attune keys`: a project's API keys.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::projects;
use crate::{connection::client::Client, error::Result, output};

/// The subcommands of `attune keys`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List a project's keys, newest first
    List {
        /// The project's ID or name [default: the only project]
        #[arg(long)]
        project: Option<String>,
    },
    /// Create an API key; its secret is printed only once
    Create {
        /// The key's name
        name: String,
        /// The key's scopes, with commas: files:read, files:write, jobs:read, jobs:write, models:read, models:write,
        /// inference, webhooks, usage:read, all, admin, installation [default: all]
        #[arg(long, value_delimiter = ',', value_name = "SCOPES")]
        scopes: Option<Vec<String>>,
        /// The days until the key expires [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
        expires_in_days: Option<u32>,
        /// The project's ID or name [default: the only project]
        #[arg(long)]
        project: Option<String>,
    },
    /// Retrieve an API key
    Get {
        /// The key's ID, key_…
        id: String,
        /// The project's ID or name [default: the only project]
        #[arg(long)]
        project: Option<String>,
    },
    /// Revoke an API key, immediately and permanently
    Revoke {
        /// The key's ID, key_…
        id: String,
        /// The project's ID or name [default: the only project]
        #[arg(long)]
        project: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: KeysCommand, as_json: bool) -> Result<()> {
    match command {
        KeysCommand::List { project } => list(client, project, as_json).await,
        KeysCommand::Create { name, scopes, expires_in_days, project } => {
            let id = projects::find(client, project).await?;
            let mut body = json!({"name": name});
            if let Some(scopes) = scopes {
                body["scopes"] = scopes.into();
            }
            if let Some(days) = expires_in_days {
                body["expires_in_seconds"] = (u64::from(days) * 86_400).min(u64::from(u32::MAX)).into();
            }
            let view = client.json(client.request(Method::POST, &path(&id)).json(&body)).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        KeysCommand::Get { id, project } => {
            let project = projects::find(client, project).await?;
            let view = client.get(&[&path(&project)[..], &[&id]].concat()).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        KeysCommand::Revoke { id, project } => {
            let project = projects::find(client, project).await?;
            let request = client.request(Method::DELETE, &[&path(&project)[..], &[&id]].concat());
            let view = client.json(request).await?;
            if as_json { output::json(&view) } else { output::line(&format!("revoked {id}")) }
        }
    }
}

fn path(project: &str) -> [&str; 4] {
    ["organization", "projects", project, "api_keys"]
}

async fn list(client: &Client, project: Option<String>, as_json: bool) -> Result<()> {
    let project = projects::find(client, project).await?;
    let keys = client.list(&path(&project), None).await?;
    if as_json {
        return output::json(&keys);
    }
    let rows = keys["data"].as_array().into_iter().flatten().map(|key| {
        vec![
            output::text(&key["id"]),
            output::text(&key["name"]),
            output::text(&key["redacted_value"]),
            scopes(key),
            output::moment(&key["last_used_at"]),
            output::moment(&key["expires_at"]),
        ]
    });
    let headings = ["KEY", "NAME", "SECRET", "SCOPES", "LAST USED (UTC)", "EXPIRES (UTC)"];
    output::table(&headings, rows.collect(), "No keys yet. Create one with `attune keys create NAME`.")
}

fn scopes(key: &Value) -> String {
    let names: Vec<String> = key["scopes"].as_array().into_iter().flatten().map(output::text).collect();
    names.join(",")
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("key", output::text(&view["id"])),
        ("name", output::text(&view["name"])),
        ("scopes", scopes(view)),
        ("created", output::moment(&view["created_at"])),
        ("last used", output::moment(&view["last_used_at"])),
        ("expires", output::moment(&view["expires_at"])),
        ("redacted", output::text(&view["redacted_value"])),
        ("secret", output::text(&view["value"])),
    ])
}
