//! `attune projects`: the organization's projects.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::project_limits::{self, LimitArgs};
use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// The subcommands of `attune projects`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectsCommand {
    /// List the projects, newest first
    List {
        /// List archived projects too
        #[arg(long)]
        archived: bool,
    },
    /// Create a project
    Create {
        /// The project's name: lower-case letters, digits and '-'
        name: String,
    },
    /// Retrieve a project
    Get {
        /// The project's ID or name
        project: String,
    },
    /// Rename a project; its fine-tuned models keep their names
    Rename {
        /// The project's ID or name
        project: String,
        /// The project's name: lower-case letters, digits and '-'
        name: String,
    },
    /// Archive a project permanently: its API keys stop working, its data is kept
    Archive {
        /// The project's ID or name
        project: String,
    },
    /// Retrieve a project's share of the machines and its quotas
    Limits {
        /// The project's ID or name
        project: String,
    },
    /// Set a project's share of the machines and its quotas; needs a key with the scope `installation`
    SetLimits(Box<LimitArgs>),
}

/// The API path of projects.
const PATH: [&str; 2] = ["organization", "projects"];

/// Runs the command.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: ProjectsCommand, as_json: bool) -> Result<()> {
    let view = match command {
        ProjectsCommand::List { archived } => return list(client, archived, as_json).await,
        ProjectsCommand::Create { name } => {
            client.json(client.request(Method::POST, &PATH).json(&json!({"name": name}))).await?
        }
        ProjectsCommand::Get { project } => {
            let id = find(client, Some(project)).await?;
            client.get(&[PATH[0], PATH[1], &id]).await?
        }
        ProjectsCommand::Rename { project, name } => {
            let id = find(client, Some(project)).await?;
            client.json(client.request(Method::POST, &[PATH[0], PATH[1], &id]).json(&json!({"name": name}))).await?
        }
        ProjectsCommand::Archive { project } => {
            let id = find(client, Some(project)).await?;
            client.json(client.request(Method::POST, &[PATH[0], PATH[1], &id, "archive"])).await?
        }
        ProjectsCommand::Limits { project } => {
            let id = find(client, Some(project)).await?;
            return project_limits::get(client, &id, as_json).await;
        }
        ProjectsCommand::SetLimits(args) => {
            let id = find(client, Some(args.project().to_owned())).await?;
            return project_limits::set(client, &id, *args, as_json).await;
        }
    };
    if as_json { output::json(&view) } else { show(&view) }
}

async fn list(client: &Client, archived: bool, as_json: bool) -> Result<()> {
    let filter: &[(&str, &str)] = if archived { &[("include_archived", "true")] } else { &[] };
    let projects = client.list_where(&PATH, filter, None).await?;
    if as_json {
        return output::json(&projects);
    }
    let rows = projects["data"].as_array().into_iter().flatten().map(|project| {
        let moment = output::moment(&project["created_at"]);
        vec![output::text(&project["id"]), output::text(&project["name"]), output::text(&project["status"]), moment]
    });
    output::table(&["PROJECT", "NAME", "STATUS", "CREATED (UTC)"], rows.collect(), "No projects.")
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("project", output::text(&view["id"])),
        ("name", output::text(&view["name"])),
        ("status", output::text(&view["status"])),
        ("created", output::moment(&view["created_at"])),
        ("archived", output::moment(&view["archived_at"])),
    ])
}

/// Returns the ID of the project that is named by its ID or name, or of the only project.
///
/// # Errors
/// [`CliError::Usage`]: no project is named, and there is not exactly one. [`CliError::NotFound`]: no project has this
/// name.
pub(crate) async fn find(client: &Client, said: Option<String>) -> Result<String> {
    if let Some(id) = said.as_ref().filter(|said| said.starts_with("proj_")) {
        return Ok(id.clone());
    }
    let all = client.list(&PATH, None).await?;
    let all: Vec<&Value> = all["data"].as_array().into_iter().flatten().collect();
    let meant: Vec<&&Value> = match &said {
        Some(name) => all.iter().filter(|project| project["name"] == name.as_str()).collect(),
        None => all.iter().collect(),
    };
    match (meant.as_slice(), said) {
        ([one], _) => Ok(output::text(&one["id"])),
        (_, Some(name)) => {
            Err(CliError::NotFound { message: format!("there is no project '{name}'"), body: Value::Null })
        }
        (_, None) => {
            let names: Vec<String> = all.iter().map(|project| output::text(&project["name"])).collect();
            Err(CliError::Usage(format!("--project is missing. Use one of: {}", names.join(", "))))
        }
    }
}
