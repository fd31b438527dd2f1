//! The place of a waiting job, as a line.

use serde_json::Value;

use crate::output;

/// Returns the place of a job in the queue; `None`: it does not wait, or is not planned yet.
pub(super) fn queue_line(job: &Value) -> Option<String> {
    let position = job["position"].as_i64()?;
    let mut line = format!("position {}", ahead(position));
    if !job["estimated_start"].is_null() {
        line = format!("{line}, estimated start {} UTC", output::moment(&job["estimated_start"]));
    }
    if let Some(reason) = job["waiting_reason"].as_str() {
        line = format!("{line}: {reason}");
    }
    Some(line)
}

/// Formats a position: `3, 2 jobs ahead`.
pub(super) fn ahead(position: i64) -> String {
    match position {
        ..=1 => "1, the next".to_owned(),
        2 => "2, 1 job ahead".to_owned(),
        _ => format!("{position}, {} jobs ahead", position - 1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_place_names_the_position_the_start_and_the_reason() {
        let job = json!({"position": 3, "estimated_start": 60, "waiting_reason": "2 jobs are ahead in the queue"});
        let want = "position 3, 2 jobs ahead, estimated start 1970-01-01 00:01:00 UTC: 2 jobs are ahead in the queue";
        assert_eq!(queue_line(&job).as_deref(), Some(want));
        let unknown = json!({"position": 1, "estimated_start": null, "waiting_reason": null});
        assert_eq!(queue_line(&unknown).as_deref(), Some("position 1, the next"));
        assert_eq!(queue_line(&json!({"status": "running", "position": null})), None);
        assert_eq!(ahead(2), "2, 1 job ahead");
    }
}
