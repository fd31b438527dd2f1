//! `attune usage` and `attune budgets`: usage, costs and the monthly budget.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{connection::client::Client, error::Result, output};

const DAY_SECONDS: u64 = 86_400;

/// The flags of `attune usage`.
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// The report
    #[arg(value_enum, default_value = "costs")]
    what: What,
    /// The number of days, today included
    #[arg(long, default_value_t = 7, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=180))]
    days: u64,
    /// Group by: model, api_key_id, adapter_id, fine_tuning_job_id or line_item; can be repeated
    #[arg(long, value_name = "GROUP")]
    by: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Costs in USD
    Costs,
    /// Requests, and their input and output tokens
    Completions,
    /// Trained tokens, and time on nodes
    Training,
    /// The project's quotas, and their use
    Quotas,
}

/// The subcommands of `attune budgets`.
#[derive(Debug, Subcommand)]
pub(crate) enum BudgetsCommand {
    /// Retrieve the project's budget and its spending this month
    Get,
    /// Set the project's budget; jobs that the budget has paused resume automatically
    Set {
        /// The budget for a calendar month in USD, or `none`
        #[arg(value_name = "USD|none")]
        monthly_usd: String,
    },
}

/// Prints a usage report.
///
/// # Errors
/// [`crate::error::CliError`]: errors of the API.
pub(crate) async fn run(client: &Client, args: UsageArgs, as_json: bool) -> Result<()> {
    let path: &[&str] = match args.what {
        What::Quotas => return quotas(client, as_json).await,
        What::Costs => &["organization", "costs"],
        What::Completions => &["organization", "usage", "completions"],
        What::Training => &["organization", "usage", "training"],
    };
    let report = whole(client, path, &args).await?;
    if as_json {
        return output::json(&report);
    }
    let rows = report["data"].as_array().into_iter().flatten().flat_map(|bucket| {
        let day = output::moment(&bucket["start_time"]).chars().take(10).collect::<String>();
        let results = bucket["results"].as_array().into_iter().flatten();
        results.map(|result| row(args.what, &day, result, &args.by)).collect::<Vec<_>>()
    });
    let mut headings: Vec<String> = vec!["DAY (UTC)".into()];
    headings.extend(args.by.iter().map(|group| group.to_uppercase().replace('_', " ")));
    headings.extend(numbers(args.what).iter().map(|(heading, _)| (*heading).to_owned()));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    output::table(&headings, rows.collect(), "No usage in these days.")
}

/// Retrieves the project's quotas and their use, and prints them.
async fn quotas(client: &Client, as_json: bool) -> Result<()> {
    let quotas = client.get(&["organization", "usage", "quotas"]).await?;
    if as_json { output::json(&quotas) } else { output::fields(&quota_fields(&quotas)) }
}

/// Formats quotas and their use.
pub(crate) fn quota_fields(quotas: &Value) -> [(&'static str, String); 4] {
    let of = |used: String, most: &Value, shown: fn(&Value) -> String| match most {
        _ if used.is_empty() => used,
        Value::Null => format!("{used}, no maximum"),
        most => format!("{used} of at most {}", shown(most)),
    };
    let hours = |value: &Value| value.as_f64().map(|hours| format!("{hours:.2} this month")).unwrap_or_default();
    let dollars = |value: &Value| value.as_f64().map(|usd| format!("${usd:.2}")).unwrap_or_default();
    [
        ("running jobs", of(output::text(&quotas["running_jobs"]), &quotas["max_running_jobs"], output::text)),
        ("node-hours", of(hours(&quotas["node_hours"]), &quotas["max_node_hours"], output::text)),
        ("stored", of(output::bytes(&quotas["stored_bytes"]), &quotas["max_stored_bytes"], output::bytes)),
        ("spent this month", of(dollars(&quotas["spent_usd"]), &quotas["monthly_usd"], dollars)),
    ]
}

/// Retrieves all pages of a report, as one page.
async fn whole(client: &Client, path: &[&str], args: &UsageArgs) -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let start = now.saturating_sub((args.days - 1) * DAY_SECONDS);
    let mut query = vec![("start_time".to_owned(), start.to_string()), ("limit".to_owned(), "31".to_owned())];
    query.extend(args.by.iter().map(|group| ("group_by".to_owned(), group.clone())));
    let mut all = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut request = client.request(Method::GET, path).query(&query);
        if let Some(page) = &next {
            request = request.query(&[("page", page)]);
        }
        let mut page = client.json(request).await?;
        all.extend(page["data"].as_array().cloned().unwrap_or_default());
        next = page["next_page"].as_str().map(str::to_owned);
        if next.is_none() {
            page["data"] = Value::Array(all);
            return Ok(page);
        }
    }
}

/// Returns the columns of a report, each with the JSON pointer of its value.
const fn numbers(what: What) -> &'static [(&'static str, &'static str)] {
    match what {
        What::Quotas => &[],
        What::Costs => &[("USD", "/amount/value")],
        What::Completions => &[
            ("REQUESTS", "/num_model_requests"),
            ("INPUT TOKENS", "/input_tokens"),
            ("OUTPUT TOKENS", "/output_tokens"),
        ],
        What::Training => {
            &[("RUNS", "/num_runs"), ("TRAINED TOKENS", "/trained_tokens"), ("NODE SECONDS", "/node_seconds")]
        }
    }
}

fn row(what: What, day: &str, result: &Value, by: &[String]) -> Vec<String> {
    let mut cells = vec![day.to_owned()];
    cells.extend(by.iter().map(|group| output::text(&result[group.as_str()])));
    cells.extend(numbers(what).iter().map(|(_, at)| result.pointer(at).map(output::text).unwrap_or_default()));
    cells
}

/// Retrieves or sets the budget, and prints it.
///
/// # Errors
/// [`crate::error::CliError`]: an invalid amount, or errors of the API.
pub(crate) async fn budgets(client: &Client, command: BudgetsCommand, as_json: bool) -> Result<()> {
    let request = match command {
        BudgetsCommand::Get => client.request(Method::GET, &["budget"]),
        BudgetsCommand::Set { monthly_usd } => {
            let body = json!({ "monthly_usd": sum(&monthly_usd)? });
            client.request(Method::POST, &["budget"]).json(&body)
        }
    };
    let budget = client.json(request).await?;
    if as_json {
        return output::json(&budget);
    }
    let dollars = |value: &Value| value.as_f64().map(|usd| format!("${usd:.2}"));
    output::fields(&[
        ("project", output::text(&budget["project_id"])),
        ("budget", dollars(&budget["monthly_usd"]).unwrap_or_else(|| "none".into())),
        ("spent", dollars(&budget["spent_usd"]).unwrap_or_default()),
        ("since", output::moment(&budget["since"])),
    ])
}

/// Parses an amount in USD, or `none`.
///
/// # Errors
/// [`crate::error::CliError::Usage`]: the text is neither.
pub(crate) fn sum(text: &str) -> Result<Option<f64>> {
    if text == "none" {
        return Ok(None);
    }
    let wrong =
        || crate::error::CliError::Usage(format!("'{text}' is not an amount. Use an amount in USD, or 'none'."));
    text.parse().map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_sum_or_none() {
        assert_eq!(sum("none").unwrap(), None);
        assert_eq!(sum("12.5").unwrap(), Some(12.5));
        assert_eq!(sum("much").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_row_has_its_groups_before_its_numbers() {
        let result = json!({"model": "tiny", "num_model_requests": 2, "input_tokens": 30, "output_tokens": 4});
        let cells = row(What::Completions, "2026-11-24", &result, &["model".into()]);
        assert_eq!(cells, ["2026-11-24", "tiny", "2", "30", "4"]);
    }
}
