//! The tables of `attune top`, from the API's status.

use std::fmt::Write as _;

use serde_json::Value;

use crate::output;

/// A list of the status as a table.
struct Section {
    /// The title, and the field of the status.
    title: &'static str,
    headings: &'static [&'static str],
    /// Returns the cells of an object at a time, in Unix seconds.
    row: fn(&Value, i64) -> Vec<String>,
}

const SECTIONS: [Section; 4] = [
    Section {
        title: "queue",
        headings: &["POSITION", "JOB", "PROJECT", "PRIORITY", "WAITED", "START (UTC)", "REASON"],
        row: queued,
    },
    Section {
        title: "runs",
        headings: &[
            "JOB",
            "PROJECT",
            "MACHINE",
            "STATE",
            "STEP",
            "TOKENS/S",
            "PREDICTED",
            "MEASURED",
            "SINCE",
            "REASON",
        ],
        row: run,
    },
    Section {
        title: "machines",
        headings: &[
            "MACHINE",
            "DEVICE",
            "MEMORY",
            "RESERVED",
            "FREE",
            "RUNS",
            "FREE SLOTS",
            "REPLICAS",
            "USD/H",
            "REGION",
        ],
        row: |found, _| machine(found),
    },
    Section {
        title: "replicas",
        headings: &["REPLICA", "MODEL", "QUANTIZATION", "STATE", "MACHINE", "MEMORY", "IDLE", "SINCE"],
        row: replica,
    },
];

/// Formats a status, with at most `most` rows in each table.
pub(super) fn page(status: &Value, most: usize) -> String {
    let now = status["read_at"].as_i64().unwrap_or_default();
    let mut page = format!("{} UTC", output::moment(&status["read_at"]));
    for provider in status["providers"].as_array().into_iter().flatten() {
        if let Some(reason) = provider["unreachable"].as_str() {
            let _ = write!(page, "\n{reason}");
        }
    }
    for section in &SECTIONS {
        let _ = write!(page, "\n\n{}", section.text(&status[section.title], now, most));
    }
    page
}

impl Section {
    fn text(&self, list: &Value, now: i64, most: usize) -> String {
        let total = list["total"].as_u64().unwrap_or_default();
        let mut text = format!("{}: {total}", self.title);
        if let Some(others @ 1..) = list["other_organizations"].as_u64() {
            let _ = write!(text, ", and {others} of other organizations");
        }
        let objects = list["data"].as_array().into_iter().flatten().take(most);
        let rows: Vec<Vec<String>> = objects.map(|object| (self.row)(object, now)).collect();
        if rows.is_empty() {
            return text;
        }
        let hidden = total.saturating_sub(rows.len() as u64);
        let _ = write!(text, "\n{}", output::table_text(self.headings, rows));
        if hidden > 0 {
            let _ = write!(text, "\n… {hidden} more");
        }
        text
    }
}

fn queued(job: &Value, now: i64) -> Vec<String> {
    vec![
        output::text(&job["position"]),
        output::text(&job["job_id"]),
        output::text(&job["project"]["name"]),
        output::text(&job["priority"]),
        since(&job["queued_at"], now),
        output::moment(&job["estimated_start"]),
        output::text(&job["reason"]),
    ]
}

fn run(run: &Value, now: i64) -> Vec<String> {
    vec![
        output::text(&run["job_id"]),
        output::text(&run["project"]["name"]),
        place(run),
        output::text(&run["state"]),
        step(run),
        run["tokens_per_second"].as_f64().map(|rate| format!("{rate:.0}")).unwrap_or_default(),
        output::bytes(&run["predicted_peak_bytes"]),
        output::bytes(&run["measured_peak_bytes"]),
        since(&run["started_at"], now),
        output::text(&run["reason"]),
    ]
}

fn machine(machine: &Value) -> Vec<String> {
    vec![
        format!("{} of {}", output::text(&machine["name"]), output::text(&machine["provider"])),
        device(machine),
        output::bytes(&machine["memory_bytes"]),
        output::bytes(&machine["reserved_memory_bytes"]),
        output::bytes(&machine["free_memory_bytes"]),
        output::text(&machine["runs"]),
        output::text(&machine["free_slots"]),
        output::text(&machine["replicas"]),
        machine["usd_per_hour"].as_f64().map(|usd| format!("{usd:.4}")).unwrap_or_default(),
        output::text(&machine["region"]),
    ]
}

fn replica(replica: &Value, now: i64) -> Vec<String> {
    vec![
        output::text(&replica["id"]),
        output::text(&replica["model"]),
        output::text(&replica["quantization"]),
        output::text(&replica["state"]),
        place(replica),
        output::bytes(&replica["memory_bytes"]),
        replica["idle_seconds"].as_f64().map(|seconds| output::duration(seconds.max(0.0) as u64)).unwrap_or_default(),
        since(&replica["created_at"], now),
    ]
}

/// Formats the machine of a run or a replica; empty before it has one.
fn place(placed: &Value) -> String {
    match placed["machine"].as_str() {
        Some(machine) => format!("{machine} of {}", output::text(&placed["provider"])),
        None => String::new(),
    }
}

/// Formats the completed steps, `12/75`; empty before their number is known.
fn step(run: &Value) -> String {
    match run["total_steps"].as_i64() {
        Some(total) => format!("{}/{total}", output::text(&run["steps_done"])),
        None => String::new(),
    }
}

fn device(machine: &Value) -> String {
    let gpu = &machine["gpu"];
    let kind = match gpu["product"].as_str() {
        Some(product) => {
            format!("{} × {product}, {}", output::text(&gpu["count"]), output::bytes(&gpu["memory_bytes"]))
        }
        None => output::text(&machine["device"]),
    };
    if machine["spot"] == true { format!("{kind}, spot") } else { kind }
}

/// Formats the time since a moment.
fn since(moment: &Value, now: i64) -> String {
    moment.as_i64().map(|at| output::duration(now.saturating_sub(at).max(0).unsigned_abs())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        let job = |position: i64, id: &str| {
            json!({"job_id": id, "project": {"id": "proj_1", "name": "mail"}, "priority": "normal",
                "position": position, "reason": "2 jobs are ahead in the queue", "estimated_start": 60,
                "queued_at": 40})
        };
        let run = json!({"job_id": "ftjob-3", "project": {"id": "proj_1", "name": "mail"}, "state": "running",
            "reason": null, "attempt": 1, "provider": "local", "machine": "this machine", "steps_done": 12,
            "total_steps": 75, "tokens_per_second": 1999.6, "predicted_peak_bytes": 400 << 20,
            "measured_peak_bytes": 380 << 20, "started_at": 0});
        let machine = json!({"provider": "cloud", "name": "g6", "device": "cuda", "spot": true, "region": "eu",
            "gpu": {"product": "NVIDIA-L4", "count": 2, "memory_bytes": 22 << 20}, "usd_per_hour": 0.5,
            "memory_bytes": 1000 << 20, "reserved_memory_bytes": 400 << 20, "free_memory_bytes": 600 << 20,
            "runs": 1, "free_slots": 3, "replicas": 0});
        let replica = json!({"id": "replica_1", "model": "tiny", "quantization": "none", "state": "wanted",
            "provider": null, "machine": null, "memory_bytes": null, "idle_seconds": 3.9, "created_at": 90});
        json!({"object": "organization.status", "read_at": 100,
            "providers": [{"name": "local", "unreachable": null}, {"name": "far", "unreachable": "far is down"}],
            "queue": {"data": [job(3, "ftjob-1"), job(4, "ftjob-2")], "total": 7, "other_organizations": 5},
            "runs": {"data": [run], "total": 1, "other_organizations": 0},
            "machines": {"data": [machine], "total": 1},
            "replicas": {"data": [replica], "total": 1, "other_organizations": 0}})
    }

    /// Returns the cells of a line, which are at least two spaces apart.
    fn cells(line: &str) -> Vec<&str> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn each_list_is_a_table_under_its_counts() {
        let page = page(&status(), usize::MAX);
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[..3], ["1970-01-01 00:01:40 UTC", "far is down", ""]);
        let after = |title: &str| {
            let at = lines.iter().position(|line| *line == title).unwrap_or_else(|| panic!("{title} in\n{page}"));
            (cells(lines[at + 1]), cells(lines[at + 2]))
        };
        let (headings, first) = after("queue: 7, and 5 of other organizations");
        assert_eq!(headings, SECTIONS[0].headings);
        let want = ["3", "ftjob-1", "mail", "normal", "60 s", "1970-01-01 00:01:00", "2 jobs are ahead in the queue"];
        assert_eq!(first, want);
        assert!(lines.contains(&"… 5 more"), "{page}");
        let (_, run) = after("runs: 1");
        let want = [
            "ftjob-3",
            "mail",
            "this machine of local",
            "running",
            "12/75",
            "2000",
            "400.0 MiB",
            "380.0 MiB",
            "1 min 40 s",
        ];
        assert_eq!(run, want);
        let (_, machine) = after("machines: 1");
        assert_eq!(machine[..2], ["g6 of cloud", "2 × NVIDIA-L4, 22.0 MiB, spot"]);
        assert_eq!(machine[5..], ["1", "3", "0", "0.5000", "eu"]);
        let (_, replica) = after("replicas: 1");
        assert_eq!(replica, ["replica_1", "tiny", "none", "wanted", "3 s", "10 s"]);
    }

    #[test]
    fn rows_beyond_the_maximum_are_counted_and_an_empty_list_has_no_table() {
        let few = page(&status(), 1);
        assert!(few.contains("ftjob-1") && !few.contains("ftjob-2") && few.contains("… 6 more"), "{few}");
        let mut status = status();
        status["queue"] = json!({"data": [], "total": 0, "other_organizations": 0});
        let page = page(&status, usize::MAX);
        assert!(page.contains("queue: 0\n\nruns: 1\n") && !page.contains("POSITION"), "{page}");
    }
}
