//! `attune audit-log`: the organization's audit logs.

use clap::Args;

use super::projects;
use crate::{connection::client::Client, error::Result, output};

/// The flags of `attune audit-log`.
#[derive(Debug, Args)]
pub(crate) struct AuditLogArgs {
    /// The maximum number of entries, newest first
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// List only entries of this project, by ID or name
    #[arg(long)]
    project: Option<String>,
    /// List only entries of this type, such as file.deleted
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// List only entries by this API key or user, by ID
    #[arg(long, value_name = "ID")]
    actor: Option<String>,
    /// List only entries about this object, by ID
    #[arg(long, value_name = "ID")]
    object: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, args: AuditLogArgs, as_json: bool) -> Result<()> {
    let project = match args.project {
        Some(project) => Some(projects::find(client, Some(project)).await?),
        None => None,
    };
    let filters = [
        ("project_ids[]", project),
        ("event_types[]", args.event_type),
        ("actor_ids[]", args.actor),
        ("resource_ids[]", args.object),
    ];
    let filters: Vec<(&str, &str)> =
        filters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let log = client.list_where(&["organization", "audit_logs"], &filters, Some(args.limit)).await?;
    if as_json {
        return output::json(&log);
    }
    let rows = log["data"].as_array().into_iter().flatten().map(|line| {
        let key = &line["actor"]["api_key"]["id"];
        let user = &line["actor"]["session"]["user"];
        let who = [key, &user["email"], &user["id"]].into_iter().map(output::text).find(|text| !text.is_empty());
        vec![
            output::moment(&line["effective_at"]),
            output::text(&line["type"]),
            output::text(&line["object_id"]),
            output::text(&line["project"]["name"]),
            who.unwrap_or_default(),
            output::text(&line["ip_address"]),
            output::text(&line["request_id"]),
        ]
    });
    let headings = ["TIME (UTC)", "TYPE", "OBJECT", "PROJECT", "ACTOR", "ADDRESS", "REQUEST"];
    output::table(&headings, rows.collect(), "No entries.")
}
