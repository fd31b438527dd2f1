//! `attune audit-log`: who changed what.

use clap::Args;

use super::projects;
use crate::{connection::client::Client, error::Result, output};

/// Flags of `attune audit-log`.
#[derive(Debug, Args)]
pub(crate) struct AuditLogArgs {
    /// How many lines, newest first
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Only in this project, by id or name
    #[arg(long)]
    project: Option<String>,
    /// Only of this type, such as file.deleted
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only by this key or user, by id
    #[arg(long, value_name = "ID")]
    actor: Option<String>,
    /// Only about this, by id
    #[arg(long, value_name = "ID")]
    object: Option<String>,
}

/// Does it.
///
/// # Errors
/// [`crate::error::CliError`]: this machine's, or the API's.
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
    let headings = ["WHEN (UTC)", "WHAT", "OBJECT", "PROJECT", "WHO", "FROM", "REQUEST"];
    output::table(&headings, rows.collect(), "Nothing was changed yet.")
}
