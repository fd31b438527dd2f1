//! `attune jobs permissions`: which other projects of the organization may use a checkpoint as a model.

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use crate::{connection::client::Client, error::Result, output};

/// Commands about a checkpoint's permissions.
#[derive(Debug, Subcommand)]
pub(crate) enum PermissionsCommand {
    /// Let projects use a checkpoint
    Grant {
        /// As `attune jobs checkpoints` calls its model, ft:…
        checkpoint: String,
        /// Their ids, proj_…
        #[arg(required = true)]
        projects: Vec<String>,
    },
    /// List who may use it, newest first
    List {
        /// As above
        checkpoint: String,
    },
    /// Take a permission back
    Revoke {
        /// As above
        checkpoint: String,
        /// The permission's id, cp_…
        permission: String,
    },
}

/// Does it.
///
/// # Errors
/// [`crate::error::CliError`]: the API's.
pub(crate) async fn run(client: &Client, command: PermissionsCommand, as_json: bool) -> Result<()> {
    let path = |checkpoint| ["fine_tuning", "checkpoints", checkpoint, "permissions"];
    let list = match command {
        PermissionsCommand::Grant { checkpoint, projects } => {
            let request = client.request(Method::POST, &path(&checkpoint)).json(&json!({"project_ids": projects}));
            client.json(request).await?
        }
        PermissionsCommand::List { checkpoint } => client.list(&path(&checkpoint), None).await?,
        PermissionsCommand::Revoke { checkpoint, permission } => {
            let path = [&path(&checkpoint)[..], &[&permission]].concat();
            let view = client.json(client.request(Method::DELETE, &path)).await?;
            return if as_json { output::json(&view) } else { output::line(&format!("revoked {permission}")) };
        }
    };
    if as_json {
        return output::json(&list);
    }
    let rows = list["data"].as_array().into_iter().flatten().map(|permission| {
        vec![
            output::text(&permission["id"]),
            output::text(&permission["project_id"]),
            output::moment(&permission["created_at"]),
        ]
    });
    output::table(&["PERMISSION", "PROJECT", "SINCE (UTC)"], rows.collect(), "No other project may use it.")
}
