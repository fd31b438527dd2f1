//! `attune jobs permissions`: the permissions of the organization's other projects to use a checkpoint as a model.

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use crate::{connection::client::Client, error::Result, output};

/// The subcommands of `attune jobs permissions`.
#[derive(Debug, Subcommand)]
pub(crate) enum PermissionsCommand {
    /// Grant projects the permission to use a checkpoint
    Grant {
        /// The checkpoint's model name, ft:…, as `attune jobs checkpoints` prints it
        checkpoint: String,
        /// The projects' IDs, proj_…
        #[arg(required = true)]
        projects: Vec<String>,
    },
    /// List a checkpoint's permissions, newest first
    List {
        /// The checkpoint's model name, ft:…
        checkpoint: String,
    },
    /// Revoke a permission
    Revoke {
        /// The checkpoint's model name, ft:…
        checkpoint: String,
        /// The permission's ID, cp_…
        permission: String,
    },
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: errors of the API.
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
    output::table(
        &["PERMISSION", "PROJECT", "SINCE (UTC)"],
        rows.collect(),
        "No permissions: no other project may use this checkpoint.",
    )
}
