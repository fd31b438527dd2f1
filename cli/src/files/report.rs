//! `attune files report`: statistics and defects of a dataset, before a job trains on it.

use reqwest::Method;
use serde_json::Value;

use crate::{connection::client::Client, error::Result, output};

/// The flags of `attune files report`. The API checks their values and names the field in its errors.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// The file's ID, file-…
    id: String,
    /// The base model whose tokenizer counts the tokens
    #[arg(long)]
    model: Option<String>,
    /// The ID of a validation file, whose rows are searched for in this file
    #[arg(long, value_name = "FILE")]
    validation_file: Option<String>,
    /// The maximum number of tokens of a row
    #[arg(long, value_name = "TOKENS", requires = "model")]
    max_length: Option<i64>,
    /// Train on the tokens of prompts too
    #[arg(long, requires = "model")]
    train_on_prompt: bool,
}

/// Requests the report and prints it.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, args: ReportArgs, as_json: bool) -> Result<()> {
    let mut query: Vec<(&str, String)> = Vec::new();
    query.extend(args.model.map(|model| ("model", model)));
    query.extend(args.validation_file.map(|file| ("validation_file", file)));
    query.extend(args.max_length.map(|most| ("max_length", most.to_string())));
    query.extend(args.train_on_prompt.then(|| ("train_on_prompt", "true".to_owned())));
    let request = client.request(Method::GET, &["files", &args.id, "report"]).query(&query);
    let report = client.json(request).await?;
    if as_json {
        return output::json(&report);
    }
    lines(&report).iter().try_for_each(|line| output::line(line))
}

fn lines(report: &Value) -> Vec<String> {
    let mut lines = vec![format!("{} rows", report["rows"])];
    let tokens = &report["tokens"];
    if !tokens.is_null() {
        lines.push(format!("{} tokens, {} of them trained", tokens["total"], tokens["trained"]));
        lines.push(format!(
            "tokens per row: {} (p50), {} (p90), {} (p99), {} (max)",
            tokens["p50"], tokens["p90"], tokens["p99"], tokens["max"]
        ));
        for step in tokens["histogram"].as_array().into_iter().flatten() {
            lines.push(format!(
                "  {:>6} to {:<6} {} rows",
                step["from"].to_string(),
                step["to"].to_string(),
                step["rows"]
            ));
        }
    }
    let over = &report["over_length"];
    if over["above"]["rows"].as_u64() > Some(0) {
        lines.push(format!("{} above {} tokens{}", rows(&over["above"]), over["max_length"], places(&over["above"])));
        for (policy, outcome) in over["policies"].as_object().into_iter().flatten() {
            lines.push(format!(
                "  {policy}: {} rows changed, {} rows result, {} tokens lost ({} trained), {} rows refused",
                outcome["changed"],
                outcome["rows"],
                outcome["tokens_lost"],
                outcome["trained_tokens_lost"],
                outcome["refused"]
            ));
        }
    }
    lines.extend(repeats("repeated", &report["duplicates"]));
    if !report["leakage"].is_null() {
        let leaked = repeats("of the validation file in this one", &report["leakage"]);
        lines.extend(if leaked.is_empty() {
            vec!["no row of the validation file is in this one".to_owned()]
        } else {
            leaked
        });
    }
    for (what, found) in report["odd_rows"].as_object().into_iter().flatten() {
        lines.push(format!("{} with {}{}", rows(found), what.replace('_', " "), places(found)));
    }
    let unusable = &report["unusable_rows"];
    if unusable["rows"].as_u64() > Some(0) {
        lines.push(format!("{} that a job would refuse:", rows(unusable)));
        for defect in unusable["first"].as_array().into_iter().flatten() {
            lines.push(format!("  line {}: {}", defect["line"], output::text(&defect["message"])));
        }
    }
    lines
}

fn repeats(what: &str, repeats: &Value) -> Vec<String> {
    let about = if repeats["estimated"] == true { "about " } else { "" };
    let found = [("", "exact"), (" but for case and white space", "normalised")];
    let found = found.into_iter().filter(|(_, kind)| repeats[*kind]["rows"].as_u64() > Some(0));
    found.map(|(but, kind)| format!("{about}{} {what}{but}{}", rows(&repeats[kind]), places(&repeats[kind]))).collect()
}

fn rows(found: &Value) -> String {
    if found["rows"] == 1 { "1 row".into() } else { format!("{} rows", found["rows"]) }
}

/// Formats line numbers: `: lines 4, 9, …`.
fn places(found: &Value) -> String {
    let lines: Vec<String> = found["lines"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    let more = found["rows"].as_u64() > Some(lines.len() as u64);
    format!(": lines {}{}", lines.join(", "), if more { ", …" } else { "" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_was_found_is_reported() {
        let none = json!({"rows": 0, "lines": []});
        let mut report = json!({"rows": 3, "tokens": null, "over_length": null, "leakage": null, "odd_rows": {},
            "duplicates": {"exact": none, "normalised": none, "estimated": false},
            "unusable_rows": {"rows": 0, "first": []}});
        assert_eq!(lines(&report), ["3 rows"]);
        report["duplicates"]["normalised"] = json!({"rows": 1, "lines": [2]});
        report["odd_rows"]["blank_answer"] = json!({"rows": 40, "lines": [1, 3]});
        report["unusable_rows"] = json!({"rows": 1, "first": [{"line": 3, "message": "no"}]});
        assert_eq!(
            lines(&report)[1..],
            [
                "1 row repeated but for case and white space: lines 2",
                "40 rows with blank answer: lines 1, 3, …",
                "1 row that a job would refuse:",
                "  line 3: no"
            ]
        );
    }
}
