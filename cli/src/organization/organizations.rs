//! `attune organizations`: the installation's organizations. Needs a key with the scope `installation`.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{connection::client::Client, error::Result, output};

/// The subcommands of `attune organizations`.
#[derive(Debug, Subcommand)]
pub(crate) enum OrganizationsCommand {
    /// List the organizations, newest first
    List,
    /// Create an organization with a project and an admin API key, whose secret is printed only once
    Create {
        /// The organization's name, 1 to 100 characters; unique in the installation
        name: String,
        /// The `iss` claim of the first owner's tokens
        #[arg(long, value_name = "URL", requires = "subject")]
        issuer: Option<String>,
        /// The `sub` claim of the first owner's tokens
        #[arg(long, requires = "issuer")]
        subject: Option<String>,
        /// The first owner's human-readable e-mail address
        #[arg(long, requires = "issuer")]
        email: Option<String>,
    },
}

/// The API path of organizations.
const PATH: [&str; 1] = ["organizations"];

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: OrganizationsCommand, as_json: bool) -> Result<()> {
    match command {
        OrganizationsCommand::List => list(client, as_json).await,
        OrganizationsCommand::Create { name, issuer, subject, email } => {
            let mut body = json!({"name": name});
            if let (Some(issuer), Some(subject)) = (issuer, subject) {
                body["owner"] = json!({"issuer": issuer, "subject": subject});
                if let Some(email) = email {
                    body["owner"]["email"] = email.into();
                }
            }
            let view = client.json(client.request(Method::POST, &PATH).json(&body)).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
    }
}

async fn list(client: &Client, as_json: bool) -> Result<()> {
    let organizations = client.list(&PATH, None).await?;
    if as_json {
        return output::json(&organizations);
    }
    let rows = organizations["data"].as_array().into_iter().flatten().map(|organization| {
        let moment = output::moment(&organization["created_at"]);
        vec![output::text(&organization["id"]), output::text(&organization["name"]), moment]
    });
    output::table(&["ORGANIZATION", "NAME", "CREATED (UTC)"], rows.collect(), "No organizations.")
}

fn show(view: &Value) -> Result<()> {
    output::fields(&[
        ("organization", output::text(&view["id"])),
        ("name", output::text(&view["name"])),
        ("project", output::text(&view["project"]["id"])),
        ("created", output::moment(&view["created_at"])),
        ("secret", output::text(&view["api_key"]["value"])),
    ])
}
