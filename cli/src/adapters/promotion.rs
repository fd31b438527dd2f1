//! `attune adapters canary`, `promote`, `abort`, `rollback`, `shadow` and `metrics`: the promotion of a version.

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{adapters::alias::parts, connection::client::Client, error::Result, output};

/// The commands of `attune adapters` that promote versions.
#[derive(Debug, Subcommand)]
pub(crate) enum PromotionCommand {
    /// Let a version answer a share of an alias's requests, or change the share
    Canary(CanaryArgs),
    /// Move an alias to the version of its canary
    Promote {
        /// The alias, as NAME@ALIAS
        alias: String,
    },
    /// Abort the canary of an alias: the version that the alias names answers all requests again
    Abort {
        /// The alias, as NAME@ALIAS
        alias: String,
    },
    /// Move an alias back to the version that it named before its last move
    Rollback {
        /// The alias, as NAME@ALIAS
        alias: String,
    },
    /// Let a version answer copies of a share of an alias's requests; only counts of the comparison are kept
    Shadow(ShadowArgs),
    /// Show the traffic of an adapter's versions: requests, errors, tokens, times and cost
    Metrics {
        /// The adapter's name
        adapter: String,
        /// The time before now
        #[arg(long, value_enum, default_value_t = Window::Hour)]
        window: Window,
    },
}

/// The arguments of `attune adapters canary`.
#[derive(Debug, Args)]
pub(crate) struct CanaryArgs {
    /// The alias, as NAME@ALIAS
    alias: String,
    /// The version: its number, its ID, or its model's name
    version: String,
    /// The share of the requests, in percent, from 1 to 99
    #[arg(long)]
    percent: i64,
    /// Abort when a larger share of the canary's requests fails, from 0 to 1
    #[arg(long, value_name = "RATE")]
    max_error_rate: Option<f64>,
    /// Abort when the 95th percentile of the time to the first token exceeds the stable version's by this factor
    #[arg(long, value_name = "FACTOR")]
    max_latency_ratio: Option<f64>,
    /// The number of requests that a version needs for a verdict
    #[arg(long, value_name = "N")]
    min_requests: Option<i64>,
}

/// The arguments of `attune adapters shadow`.
#[derive(Debug, Args)]
pub(crate) struct ShadowArgs {
    /// The alias, as NAME@ALIAS
    alias: String,
    /// The version: its number, its ID, or its model's name
    #[arg(required_unless_present = "stop", requires = "percent")]
    version: Option<String>,
    /// The share of the requests, in percent, from 1 to 100
    #[arg(long, requires = "version")]
    percent: Option<i64>,
    /// Stop the shadow
    #[arg(long, conflicts_with_all = ["version", "percent"])]
    stop: bool,
}

/// The time before now that traffic is shown of.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Window {
    /// The last hour
    Hour,
    /// The last day
    Day,
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError::Usage`]: the alias is not of the form NAME@ALIAS. Errors of the API.
pub(crate) async fn run(client: &Client, command: PromotionCommand, as_json: bool) -> Result<()> {
    let (alias, end, body) = match command {
        PromotionCommand::Canary(args) => {
            let body = canary(&args);
            (args.alias, "canary", Some(body))
        }
        PromotionCommand::Promote { alias } => (alias, "promote", None),
        PromotionCommand::Abort { alias } => (alias, "abort", None),
        PromotionCommand::Rollback { alias } => (alias, "rollback", None),
        PromotionCommand::Shadow(ShadowArgs { alias, version, percent, stop: false }) => {
            (alias, "shadow", Some(json!({"version": version, "percent": percent})))
        }
        PromotionCommand::Shadow(ShadowArgs { alias, stop: true, .. }) => {
            let (adapter, name) = parts(&alias)?;
            let path = ["adapters", adapter, "aliases", name, "shadow"];
            return show(&client.json(client.request(Method::DELETE, &path)).await?, as_json);
        }
        PromotionCommand::Metrics { adapter, window } => return metrics(client, &adapter, window, as_json).await,
    };
    let (adapter, name) = parts(&alias)?;
    let mut request = client.request(Method::POST, &["adapters", adapter, "aliases", name, end]);
    if let Some(body) = body {
        request = request.json(&body);
    }
    show(&client.json(request).await?, as_json)
}

fn canary(args: &CanaryArgs) -> Value {
    let mut abort = json!({});
    for (name, value) in [
        ("max_error_rate", args.max_error_rate.map(Value::from)),
        ("max_latency_ratio", args.max_latency_ratio.map(Value::from)),
        ("min_requests", args.min_requests.map(Value::from)),
    ] {
        if let Some(value) = value {
            abort[name] = value;
        }
    }
    json!({"version": args.version, "percent": args.percent, "abort": abort})
}

fn show(alias: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(alias);
    }
    let mut fields = vec![
        ("alias", output::text(&alias["id"])),
        ("version", output::text(&alias["version"])),
        ("model", output::text(&alias["model"])),
        ("previous", output::text(&alias["previous_version"])),
    ];
    let canary = &alias["canary"];
    if canary.is_object() {
        let text = |name: &str| output::text(&canary[name]);
        fields.push(("canary", format!("version {}, {} %, {}", text("version"), text("percent"), text("status"))));
        if canary["reason"].is_string() {
            fields.push(("reason", text("reason")));
        }
    }
    let shadow = &alias["shadow"];
    if shadow.is_object() && shadow["ended_at"].is_null() {
        let text = |name: &str| output::text(&shadow[name]);
        let counts = format!("{} of {} copies equal", text("equal"), text("compared"));
        fields.push(("shadow", format!("version {}, {} %, {counts}", text("version"), text("percent"))));
    }
    output::fields(&fields)
}

async fn metrics(client: &Client, adapter: &str, window: Window, as_json: bool) -> Result<()> {
    let window = match window {
        Window::Hour => "hour",
        Window::Day => "day",
    };
    let request = client.request(Method::GET, &["adapters", adapter, "metrics"]).query(&[("window", window)]);
    let view = client.json(request).await?;
    if as_json {
        return output::json(&view);
    }
    let rows = view["data"].as_array().into_iter().flatten().map(|version| {
        let number = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"));
        vec![
            output::text(&version["version"]),
            output::text(&version["requests"]),
            output::text(&version["errors"]),
            output::text(&version["input_tokens"]),
            output::text(&version["output_tokens"]),
            number(&version["ttft_ms"]["p95"]),
            number(&version["tpot_ms"]["p95"]),
            number(&version["queue_ms"]["p95"]),
            version["usd_per_million_tokens"].as_f64().map_or_else(|| "-".to_owned(), |usd| format!("{usd:.4}")),
        ]
    });
    let headings =
        ["VERSION", "REQUESTS", "ERRORS", "INPUT", "OUTPUT", "TTFT P95 MS", "TPOT P95 MS", "QUEUE P95 MS", "USD/M"];
    output::table(&headings, rows.collect(), "No requests in this time.")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: PromotionCommand,
    }

    #[test]
    fn only_the_numbers_that_are_set_are_sent() {
        let line =
            Line::try_parse_from(["x", "canary", "house@prod", "2", "--percent", "5", "--max-error-rate", "0.1"]);
        let PromotionCommand::Canary(args) = line.unwrap().command else { panic!() };
        let wanted = json!({"version": "2", "percent": 5, "abort": {"max_error_rate": 0.1}});
        assert_eq!(canary(&args), wanted);
    }

    #[test]
    fn a_shadow_is_started_or_stopped() {
        let parses = |line: &[&str]| Line::try_parse_from([&["x", "shadow", "house@prod"][..], line].concat()).is_ok();
        assert!(parses(&["2", "--percent", "5"]) && parses(&["--stop"]));
        for wrong in [&["2"][..], &["--percent", "5"], &["--stop", "2", "--percent", "5"], &[]] {
            assert!(!parses(wrong), "{wrong:?}");
        }
    }
}
