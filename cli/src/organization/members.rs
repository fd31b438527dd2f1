//! `attune members`: the users of the organization and of its projects.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::projects;
use crate::{connection::client::Client, error::Result, output};

/// The subcommands of `attune members`.
#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// List the users of the organization, or of a project
    List {
        /// The project's ID or name [default: the organization]
        #[arg(long)]
        project: Option<String>,
    },
    /// Add a user to the organization, identified by the tokens of an issuer that the API trusts
    Add {
        /// The `iss` claim of the user's tokens
        #[arg(long, value_name = "URL")]
        issuer: String,
        /// The `sub` claim of the user's tokens
        #[arg(long)]
        subject: String,
        /// The role: viewer, member, admin or owner
        #[arg(long)]
        role: String,
        /// The user's human-readable e-mail address
        #[arg(long)]
        email: Option<String>,
        /// The user's human-readable name
        #[arg(long)]
        name: Option<String>,
    },
    /// Add a member of the organization to a project
    Join {
        /// The user's ID, user-…
        id: String,
        /// The project's ID or name
        #[arg(long)]
        project: String,
        /// The role: viewer, member, admin or owner
        #[arg(long)]
        role: String,
    },
    /// Change a user's role in the organization or in a project
    Role {
        /// The user's ID, user-…
        id: String,
        /// The role: viewer, member, admin or owner
        role: String,
        /// The project's ID or name [default: the organization]
        #[arg(long)]
        project: Option<String>,
    },
    /// Remove a user from the organization or from a project
    Remove {
        /// The user's ID, user-…
        id: String,
        /// The project's ID or name [default: the organization]
        #[arg(long)]
        project: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: MembersCommand, as_json: bool) -> Result<()> {
    let view = match command {
        MembersCommand::List { project } => return list(client, project, as_json).await,
        MembersCommand::Add { issuer, subject, role, email, name } => {
            let mut body = json!({"issuer": issuer, "subject": subject, "role": role});
            for (field, value) in [("email", email), ("name", name)] {
                if let Some(value) = value {
                    body[field] = value.into();
                }
            }
            client.json(client.request(Method::POST, &["organization", "users"]).json(&body)).await?
        }
        MembersCommand::Join { id, project, role } => {
            let place = place(client, Some(project)).await?;
            let body = json!({"user_id": id, "role": role});
            client.json(client.request(Method::POST, &parts(&place, None)).json(&body)).await?
        }
        MembersCommand::Role { id, role, project } => {
            let place = place(client, project).await?;
            client.json(client.request(Method::POST, &parts(&place, Some(&id))).json(&json!({"role": role}))).await?
        }
        MembersCommand::Remove { id, project } => {
            let place = place(client, project).await?;
            let view = client.json(client.request(Method::DELETE, &parts(&place, Some(&id)))).await?;
            return if as_json { output::json(&view) } else { output::line(&format!("removed {id}")) };
        }
    };
    if as_json { output::json(&view) } else { show(&view) }
}

/// Returns the ID of the project that is named; `None` means the organization.
async fn place(client: &Client, project: Option<String>) -> Result<Option<String>> {
    match project {
        Some(project) => projects::find(client, Some(project)).await.map(Some),
        None => Ok(None),
    }
}

fn parts<'a>(project: &'a Option<String>, id: Option<&'a str>) -> Vec<&'a str> {
    let mut parts = vec!["organization"];
    if let Some(project) = project {
        parts.extend(["projects", project]);
    }
    parts.push("users");
    parts.extend(id);
    parts
}

async fn list(client: &Client, project: Option<String>, as_json: bool) -> Result<()> {
    let place = place(client, project).await?;
    let users = client.list(&parts(&place, None), None).await?;
    if as_json {
        return output::json(&users);
    }
    let rows = users["data"].as_array().into_iter().flatten().map(|user| {
        let fields = ["id", "role", "name", "email", "issuer", "subject"];
        fields.iter().map(|field| output::text(&user[*field])).collect()
    });
    let headings = ["USER", "ROLE", "NAME", "E-MAIL", "ISSUER", "SUBJECT"];
    output::table(&headings, rows.collect(), "No users yet. Add one with `attune members add`.")
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("user", output::text(&view["id"])),
        ("role", output::text(&view["role"])),
        ("name", output::text(&view["name"])),
        ("e-mail", output::text(&view["email"])),
        ("issuer", output::text(&view["issuer"])),
        ("subject", output::text(&view["subject"])),
        ("added", output::moment(&view["added_at"])),
    ])
}
