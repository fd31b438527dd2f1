//! `attune members`: people of the organization, and of its projects.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::projects;
use crate::{connection::client::Client, error::Result, output};

/// Commands about people.
#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// List the organization's people, or a project's
    List {
        /// Of this project, by id or name
        #[arg(long)]
        project: Option<String>,
    },
    /// Let somebody into the organization, by the word of an issuer that the API is configured with
    Add {
        /// The `iss` of their tokens
        #[arg(long, value_name = "URL")]
        issuer: String,
        /// The `sub` of their tokens
        #[arg(long)]
        subject: String,
        /// viewer, member, admin or owner
        #[arg(long)]
        role: String,
        /// For people
        #[arg(long)]
        email: Option<String>,
        /// For people
        #[arg(long)]
        name: Option<String>,
    },
    /// Let a member of the organization into a project
    Join {
        /// Their id, user-…
        id: String,
        /// The project's id or name
        #[arg(long)]
        project: String,
        /// viewer, member, admin or owner
        #[arg(long)]
        role: String,
    },
    /// Give somebody another role, in the organization or in a project
    Role {
        /// Their id, user-…
        id: String,
        /// viewer, member, admin or owner
        role: String,
        /// In this project, by id or name
        #[arg(long)]
        project: Option<String>,
    },
    /// Show somebody out of the organization, or of a project
    Remove {
        /// Their id, user-…
        id: String,
        /// Of this project, by id or name
        #[arg(long)]
        project: Option<String>,
    },
}

/// Does it.
///
/// # Errors
/// [`crate::error::CliError`]: this machine's, or the API's.
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

/// The project that is meant, if one is; the organization is meant otherwise.
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
    output::table(&headings, rows.collect(), "Nobody yet: let somebody in with `attune members add`.")
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
