//! `attune jobs explain`: why a job runs where it runs, why it waits, why it failed.

use serde_json::Value;

use super::{estimate::memory, queue_line};
use crate::{connection::client::Client, error::Result, output, usage::quota_fields};

/// Retrieves a job's placement and prints it.
///
/// # Errors
/// [`crate::error::CliError`]: the errors of the API.
pub(crate) async fn run(client: &Client, id: &str, as_json: bool) -> Result<()> {
    let placement = client.get(&["fine_tuning", "jobs", id, "placement"]).await?;
    if as_json {
        return output::json(&placement);
    }
    output::fields(&fields(&placement))?;
    lines(&placement).iter().try_for_each(|line| output::line(line))
}

fn fields(placement: &Value) -> Vec<(&'static str, String)> {
    let (run, waiting) = (&placement["run"], &placement["waiting"]);
    let mut fields = vec![
        ("job", output::text(&placement["job_id"])),
        ("status", output::text(&placement["status"])),
        ("waits", output::text(&waiting["reason"])),
        ("position", position(waiting)),
        ("estimated start", output::moment(&waiting["estimated_start"])),
        ("priority", output::text(&waiting["priority"])),
        ("own jobs running", running(waiting)),
        ("attempt", output::text(&run["attempt"])),
        ("machine", machine(run)),
        ("predicted", predicted(&run["offer"]["predicted"]).map_or_else(String::new, |text| format!("costs {text}"))),
        ("memory", if run["memory"].is_null() { String::new() } else { memory(&run["memory"]) }),
        ("measured peak", output::bytes(&run["measured_peak_bytes"])),
        ("plan", plan(&run["plan"])),
        ("started", output::moment(&run["started_at"])),
        ("ended", output::moment(&run["ended_at"])),
        ("failed", output::text(&placement["error"]["message"])),
    ];
    // The running jobs are listed above.
    fields.extend(quota_fields(&waiting["quotas"]).into_iter().skip(1));
    fields
}

fn position(waiting: &Value) -> String {
    let Some(position) = waiting["position"].as_i64() else { return String::new() };
    match waiting["own_jobs_ahead"].as_i64() {
        Some(own) if own > 0 => format!("{} ({own} of them this project's)", queue_line::ahead(position)),
        _ => queue_line::ahead(position),
    }
}

fn running(waiting: &Value) -> String {
    let running = output::text(&waiting["own_jobs_running"]);
    match waiting["max_running_jobs"].as_i64() {
        Some(most) => format!("{running} of at most {most}"),
        None => running,
    }
}

fn machine(run: &Value) -> String {
    let offer = &run["offer"];
    match (offer["name"].as_str(), offer["usd_per_hour"].as_f64()) {
        (Some(name), Some(usd)) if usd > 0.0 => {
            format!("{name} of {}, ${usd:.4} an hour", output::text(&offer["provider"]))
        }
        (Some(name), _) => format!("{name} of {}", output::text(&offer["provider"])),
        (None, _) => String::new(),
    }
}

/// Formats a predicted cost and duration: `about $1.20 in 2 h 10 min`; `None`: not predicted.
fn predicted(predicted: &Value) -> Option<String> {
    let (usd, seconds) = (predicted["machine_usd"].as_f64()?, predicted["duration_seconds"].as_f64()?);
    Some(format!("about ${usd:.2} in {}", output::duration(seconds.round() as u64)))
}

fn plan(plan: &Value) -> String {
    if plan.is_null() {
        return String::new();
    }
    let of = |name: &str| format!("{name} {}", output::text(&plan[name]));
    ["micro_batch_size", "gradient_checkpointing", "threads"].map(of).join(", ")
}

/// Returns a line for each offer that was not taken.
fn lines(placement: &Value) -> Vec<String> {
    let others = placement["run"]["other_offers"].as_array().into_iter().flatten();
    let line = |other: &Value| {
        let reason = output::text(&other["reason"]);
        match predicted(&other["predicted"]) {
            Some(cost) => format!("not taken: {reason}; the job would cost {cost}"),
            None => format!("not taken: {reason}"),
        }
    };
    others.map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(placement: &Value) -> Vec<(&'static str, String)> {
        fields(placement).into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    #[test]
    fn a_waiting_job_shows_its_place_and_no_run() {
        let placement = json!({"job_id": "ftjob-1", "status": "queued", "run": null, "error": null, "waiting": {
            "reason": "2 jobs are ahead in the queue", "position": 3, "estimated_start": 0, "jobs_ahead": 2,
            "own_jobs_ahead": 1, "own_jobs_running": 1, "max_running_jobs": 4, "priority": "normal", "quotas": {
            "running_jobs": 1, "max_running_jobs": 4, "node_hours": 1.5, "max_node_hours": 2, "stored_bytes": 1024,
            "max_stored_bytes": 2048, "spent_usd": 0.0, "monthly_usd": null}}});
        let want = [
            ("job", "ftjob-1"),
            ("status", "queued"),
            ("waits", "2 jobs are ahead in the queue"),
            ("position", "3, 2 jobs ahead (1 of them this project's)"),
            ("estimated start", "1970-01-01 00:00:00"),
            ("priority", "normal"),
            ("own jobs running", "1 of at most 4"),
            ("node-hours", "1.50 this month of at most 2"),
            ("stored", "1.0 KiB of at most 2.0 KiB"),
            ("spent this month", "$0.00, no maximum"),
        ];
        assert_eq!(shown(&placement), want.map(|(name, value)| (name, value.to_owned())));
        assert!(lines(&placement).is_empty());
    }

    #[test]
    fn a_running_job_shows_its_machine_and_the_others() {
        let placement = json!({"job_id": "ftjob-1", "status": "running", "waiting": null, "error": null, "run": {
            "attempt": 1, "offer": {"provider": "local", "name": "this machine", "usd_per_hour": 0.5,
                "predicted": {"machine_usd": 1.2, "duration_seconds": 7800.4}},
            "plan": {"micro_batch_size": 4, "gradient_checkpointing": false, "threads": 2},
            "other_offers": [{"reason": "small has 1 B too little memory", "predicted": null},
                {"reason": "dear is large enough", "predicted": {"machine_usd": 1.9, "duration_seconds": 60.0}}]}});
        let shown = shown(&placement);
        assert!(shown.contains(&("machine", "this machine of local, $0.5000 an hour".into())), "{shown:?}");
        assert!(
            shown.contains(&("plan", "micro_batch_size 4, gradient_checkpointing false, threads 2".into())),
            "{shown:?}"
        );
        assert!(shown.contains(&("predicted", "costs about $1.20 in 2 h 10 min".into())), "{shown:?}");
        let others = [
            "not taken: small has 1 B too little memory",
            "not taken: dear is large enough; the job would cost about $1.90 in 60 s",
        ];
        assert_eq!(lines(&placement), others);
    }
}
