//! `attune webhooks`: a project's webhook endpoints and their deliveries.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

const ENDPOINTS: &str = "webhook_endpoints";

/// The subcommands of `attune webhooks`.
#[derive(Debug, Subcommand)]
pub(crate) enum WebhooksCommand {
    /// Create a webhook endpoint; its secret is printed only once
    Create {
        /// The endpoint's URL, https://… or http://…
        url: String,
        #[command(flatten)]
        fields: Fields,
    },
    /// List the webhook endpoints, newest first
    List,
    /// Retrieve a webhook endpoint
    Show {
        /// The endpoint's ID, we_…
        id: String,
    },
    /// Update a webhook endpoint; fields that are not set stay unchanged
    Update(UpdateArgs),
    /// Delete a webhook endpoint and its deliveries
    Delete {
        /// The endpoint's ID, we_…
        id: String,
    },
    /// Rotate an endpoint's secret; the new one is printed only once
    Rotate {
        /// The endpoint's ID, we_…
        id: String,
        /// The seconds for which deliveries are signed with the previous secret too [default: 86400]
        #[arg(long, value_name = "SECONDS")]
        overlap_seconds: Option<u32>,
    },
    /// List an endpoint's deliveries, newest first
    Deliveries {
        /// The endpoint's ID, we_…
        id: String,
        /// List only deliveries with this status: pending, delivered or failed
        #[arg(long, value_name = "STATUS")]
        status: Option<String>,
        /// The maximum number of deliveries
        #[arg(long, value_name = "COUNT", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
    },
    /// Replay a delivery
    Replay {
        /// The endpoint's ID, we_…
        id: String,
        /// The delivery's ID, wd_…
        delivery: String,
    },
    /// Send a test event to an endpoint
    Test {
        /// The endpoint's ID, we_…
        id: String,
    },
}

/// The fields of an endpoint, except its URL.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// The event types to send; can be repeated, or separated by commas [default of a new endpoint: all]
    #[arg(long = "event", value_name = "TYPE", value_delimiter = ',')]
    events: Vec<String>,
    /// The endpoint's description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl Fields {
    fn body(self) -> Map<String, Value> {
        let mut body = Map::new();
        if !self.events.is_empty() {
            body.insert("event_types".into(), self.events.into());
        }
        if let Some(description) = self.description {
            body.insert("description".into(), description.into());
        }
        body
    }
}

/// The flags of `attune webhooks update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// The endpoint's ID, we_…
    id: String,
    /// The endpoint's URL
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    fields: Fields,
    /// Enable the endpoint
    #[arg(long)]
    enable: bool,
    /// Disable the endpoint
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: WebhooksCommand, as_json: bool) -> Result<()> {
    match command {
        WebhooksCommand::Create { url, fields } => {
            let mut body = fields.body();
            body.insert("url".into(), url.into());
            show(&post(client, &[ENDPOINTS], Some(body.into())).await?, as_json)
        }
        WebhooksCommand::List => list(&client.list(&[ENDPOINTS], None).await?, as_json),
        WebhooksCommand::Show { id } => show(&client.get(&[ENDPOINTS, &id]).await?, as_json),
        WebhooksCommand::Update(args) => update(client, args, as_json).await,
        WebhooksCommand::Delete { id } => {
            let view = client.json(client.request(Method::DELETE, &[ENDPOINTS, &id])).await?;
            if as_json { output::json(&view) } else { output::line(&format!("deleted {id}")) }
        }
        WebhooksCommand::Rotate { id, overlap_seconds } => {
            let body = overlap_seconds.map_or(json!({}), |seconds| json!({ "overlap_seconds": seconds }));
            show(&post(client, &[ENDPOINTS, &id, "rotate_secret"], Some(body)).await?, as_json)
        }
        WebhooksCommand::Deliveries { id, status, limit } => {
            deliveries(client, &id, status.as_deref(), limit, as_json).await
        }
        WebhooksCommand::Replay { id, delivery } => {
            show_delivery(&post(client, &[ENDPOINTS, &id, "deliveries", &delivery, "replay"], None).await?, as_json)
        }
        WebhooksCommand::Test { id } => show_delivery(&post(client, &[ENDPOINTS, &id, "test"], None).await?, as_json),
    }
}

async fn post(client: &Client, path: &[&str], body: Option<Value>) -> Result<Value> {
    let request = client.request(Method::POST, path);
    client.json(body.into_iter().fold(request, |request, body| request.json(&body))).await
}

async fn update(client: &Client, args: UpdateArgs, as_json: bool) -> Result<()> {
    let mut body = args.fields.body();
    if let Some(url) = args.url {
        body.insert("url".into(), url.into());
    }
    if args.enable || args.disable {
        body.insert("status".into(), if args.enable { "enabled" } else { "disabled" }.into());
    }
    if body.is_empty() {
        let nothing = "there is no change. Set --url, --event, --description, --enable or --disable.";
        return Err(CliError::Usage(nothing.into()));
    }
    show(&post(client, &[ENDPOINTS, &args.id], Some(body.into())).await?, as_json)
}

fn list(endpoints: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(endpoints);
    }
    let rows = endpoints["data"].as_array().into_iter().flatten().map(|endpoint| {
        vec![
            output::text(&endpoint["id"]),
            output::text(&endpoint["url"]),
            status(endpoint),
            output::moment(&endpoint["created_at"]),
        ]
    });
    let headings = ["ENDPOINT", "URL", "STATUS", "CREATED (UTC)"];
    output::table(&headings, rows.collect(), "No webhook endpoints yet. Create one with `attune webhooks create URL`.")
}

fn status(endpoint: &Value) -> String {
    match endpoint["disabled_reason"].as_str() {
        Some(reason) => format!("disabled ({reason})"),
        None => output::text(&endpoint["status"]),
    }
}

fn show(endpoint: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(endpoint);
    }
    let events = endpoint["event_types"].as_array().into_iter().flatten().map(output::text).collect::<Vec<_>>();
    output::fields(&[
        ("endpoint", output::text(&endpoint["id"])),
        ("url", output::text(&endpoint["url"])),
        ("events", events.join(", ")),
        ("description", output::text(&endpoint["description"])),
        ("status", status(endpoint)),
        ("secret (shown only once)", output::text(&endpoint["secret"])),
        ("old secret until", output::moment(&endpoint["previous_secret_expires_at"])),
        ("created", output::moment(&endpoint["created_at"])),
    ])
}

async fn deliveries(client: &Client, id: &str, status: Option<&str>, limit: u32, as_json: bool) -> Result<()> {
    let path = [ENDPOINTS, id, "deliveries"];
    let request = client.request(Method::GET, &path).query(&[("limit", limit)]);
    let request = status.into_iter().fold(request, |request, status| request.query(&[("status", status)]));
    let found = client.json(request).await?;
    if as_json {
        return output::json(&found);
    }
    let rows = found["data"].as_array().into_iter().flatten().map(|delivery| {
        vec![
            output::text(&delivery["id"]),
            output::text(&delivery["event"]["type"]),
            output::text(&delivery["status"]),
            output::text(&json!(delivery["attempts"].as_array().map_or(0, Vec::len))),
            last_answer(delivery),
            output::moment(&delivery["next_attempt_at"]),
        ]
    });
    let headings = ["DELIVERY", "EVENT", "STATUS", "ATTEMPTS", "LAST RESPONSE", "NEXT (UTC)"];
    output::table(&headings, rows.collect(), "No deliveries yet.")
}

/// Formats the last response, `200 in 12 ms`, or the error if there was none.
fn last_answer(delivery: &Value) -> String {
    let Some(last) = delivery["attempts"].as_array().and_then(|attempts| attempts.last()) else {
        return String::new();
    };
    match last["status_code"].as_i64() {
        Some(code) => format!("{code} in {} ms", output::text(&last["latency_ms"])),
        None => output::text(&last["error"]),
    }
}

fn show_delivery(delivery: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(delivery);
    }
    output::fields(&[
        ("delivery", output::text(&delivery["id"])),
        ("event", output::text(&delivery["event"]["type"])),
        ("status", output::text(&delivery["status"])),
        ("last response", last_answer(delivery)),
    ])
}
