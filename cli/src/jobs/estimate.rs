//! `attune jobs estimate`: a job's steps, memory, node, time and price, before the job exists.

use reqwest::Method;
use serde_json::Value;

use super::create::{self, NewJobArgs};
use crate::{connection::client::Client, error::Result, output};

/// Requests an estimate and prints it. A local dataset is uploaded first, since the API counts its tokens.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, args: NewJobArgs, as_json: bool) -> Result<()> {
    let body = create::uploaded(client, create::laid(args)?).await?;
    let estimate = client.json(client.request(Method::POST, &["fine_tuning", "estimates"]).json(&body)).await?;
    if as_json { output::json(&estimate) } else { show(&estimate) }
}

fn show(estimate: &Value) -> Result<()> {
    let hyperparameters = &estimate["hyperparameters"];
    output::fields(&[
        ("model", output::text(&estimate["model"])),
        (
            "hyperparameters",
            format!(
                "n_epochs {}, batch_size {}, learning rate {}",
                output::text(&hyperparameters["n_epochs"]),
                output::text(&hyperparameters["batch_size"]),
                output::text(&estimate["trainer"]["learning_rate"])
            ),
        ),
        ("rows", output::text(&estimate["training"]["rows"])),
        ("steps", output::text(&estimate["total_steps"])),
        ("trained tokens", trained_tokens(estimate)),
        ("memory", memory(&estimate["memory"])),
        ("machine", machine(estimate)),
        ("waits", output::text(&estimate["waiting_reason"])),
        ("throughput", throughput(&estimate["pace"])),
        ("time", band(&estimate["duration_seconds"], |seconds| output::duration(seconds.round() as u64))),
        ("price", band(&estimate["price_usd"], |usd| format!("${usd:.2}"))),
    ])?;
    for refusal in estimate["refusals"].as_array().into_iter().flatten() {
        output::line(&format!("refused offer: {}", output::text(&refusal["message"])))?;
    }
    if let Some(advice) = estimate["gpu_advice"]["message"].as_str() {
        output::line(&format!("GPUs of the catalogue: {advice}"))?;
    }
    if let Some(note) = estimate["duration_note"].as_str() {
        output::line(&format!("time: {note}"))?;
    }
    for note in estimate["notes"].as_array().into_iter().flatten() {
        output::line(&format!("note: {}", output::text(note)))?;
    }
    Ok(())
}

fn trained_tokens(estimate: &Value) -> String {
    let about = if estimate["is_exact"] == true { "" } else { "about " };
    format!("{about}{} of {}", output::text(&estimate["trained_tokens"]), output::text(&estimate["tokens"]))
}

/// Formats the peak memory and its parts, largest first, and the memory with the margin.
pub(super) fn memory(memory: &Value) -> String {
    let mut parts: Vec<_> = memory["parts"].as_object().into_iter().flatten().collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.as_u64()));
    let parts: Vec<_> = parts.iter().map(|(name, bytes)| format!("{name} {}", output::bytes(bytes))).collect();
    let peak = format!("{} ({})", output::bytes(&memory["peak_bytes"]), parts.join(", "));
    let Some(percent) = memory["margin_percent"].as_u64() else { return peak };
    let (needed, source) = (output::bytes(&memory["needed_bytes"]), output::text(&memory["margin_source"]));
    format!("{peak}; {needed} with a margin of {percent}% ({source})")
}

fn machine(estimate: &Value) -> String {
    match (estimate["offer"]["name"].as_str(), estimate["waits"] == true) {
        (None, _) => "none is large enough".into(),
        (Some(name), false) => name.to_owned(),
        (Some(name), true) => format!("{name}, once it is free"),
    }
}

fn throughput(throughput: &Value) -> String {
    let Some(tokens) = throughput["tokens_per_second"].as_f64() else { return String::new() };
    match throughput["runs"].as_u64() {
        Some(runs) if runs > 0 => format!("{tokens:.0} tokens/s, measured in {runs} earlier runs"),
        _ => format!("{tokens:.0} tokens/s, assumed: no run of this base model was measured on this processor yet"),
    }
}

/// Formats a range: `4 min 10 s (3 min 20 s to 5 min 13 s)`.
fn band(band: &Value, shown: impl Fn(f64) -> String) -> String {
    let of = |name: &str| band[name].as_f64().map(&shown);
    match (of("low"), of("likely"), of("high")) {
        (Some(low), Some(likely), Some(high)) if low != high => format!("{likely} ({low} to {high})"),
        (_, Some(likely), _) => likely,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_band_is_shown_with_its_ends_where_they_differ() {
        let usd = |value: f64| format!("${value:.2}");
        assert_eq!(band(&json!({"low": 1.0, "likely": 2.0, "high": 3.0}), usd), "$2.00 ($1.00 to $3.00)");
        assert_eq!(band(&json!({"low": 0.0, "likely": 0.0, "high": 0.0}), usd), "$0.00");
        assert_eq!(band(&Value::Null, usd), "");
    }

    #[test]
    fn a_rate_that_was_not_measured_says_so() {
        assert!(throughput(&json!({"tokens_per_second": 165.2, "runs": 0})).contains("165 tokens/s, assumed"));
        assert!(throughput(&json!({"tokens_per_second": 165.2, "runs": 3})).ends_with("in 3 earlier runs"));
    }
}
