//! The state of a watched job, from its events: the loss curve, the step rate, the time left. Pure.

use std::collections::HashSet;

use serde_json::Value;

use crate::output;

/// The number of latest steps from which the step rate is computed.
const RATE_STEPS: usize = 50;

/// One `metrics` event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// The step's number, from 1.
    pub(crate) step: u64,
    /// The mean loss of the step's trained tokens.
    pub(crate) loss: f64,
    /// The mean loss of the validation rows, if the step evaluated them.
    pub(crate) valid_loss: Option<f64>,
    /// The throughput of the step.
    pub(crate) tokens_per_second: Option<f64>,
    /// The event's time, in Unix seconds.
    at: i64,
}

/// The state after all events so far.
#[derive(Debug, Default)]
pub(crate) struct Story {
    seen: HashSet<String>,
    /// The steps, in order; a step that is repeated after a crash replaces its earlier event and all later steps.
    steps: Vec<Step>,
    /// The total number of the job's steps.
    pub(crate) total_steps: u64,
}

impl Story {
    /// Adds an event; returns what to print of it, or `None` if it is a duplicate.
    pub(crate) fn take(&mut self, event: &Value) -> Option<Entry> {
        let id = event["id"].as_str()?;
        if !self.seen.insert(id.to_owned()) {
            return None;
        }
        let Some(step) = read_step(event) else { return Some(Entry::Message(output::text(&event["message"]))) };
        if let Some(total) = event["data"]["total_steps"].as_u64() {
            self.total_steps = total;
        }
        self.steps.retain(|known| known.step < step.step);
        self.steps.push(step.clone());
        Some(Entry::Step(step))
    }

    /// Returns the last step.
    pub(crate) fn last(&self) -> Option<&Step> {
        self.steps.last()
    }

    /// Returns the loss curve as a line of block characters.
    pub(crate) fn curve(&self, width: usize) -> String {
        output::sparkline(&self.steps.iter().map(|step| step.loss).collect::<Vec<_>>(), width)
    }

    /// Estimates the seconds until the last step from the rate of the latest steps; `None` while there is no rate.
    pub(crate) fn seconds_left(&self) -> Option<u64> {
        let recent = &self.steps[self.steps.len().saturating_sub(RATE_STEPS)..];
        let (first, last) = (recent.first()?, recent.last()?);
        let (steps, seconds) = (last.step - first.step, last.at - first.at);
        if steps == 0 || seconds <= 0 {
            return None;
        }
        let left = self.total_steps.saturating_sub(last.step);
        Some((seconds as f64 / steps as f64 * left as f64).round() as u64)
    }

    /// Formats the progress: `loss 0.4120, validation 0.5000, 812 tokens/s, 4 min 10 s left`.
    pub(crate) fn sentence(&self) -> String {
        let Some(step) = self.last() else { return String::new() };
        let mut parts = vec![format!("loss {:.4}", step.loss)];
        if let Some(valid) = self.steps.iter().rev().find_map(|step| step.valid_loss) {
            parts.push(format!("validation {valid:.4}"));
        }
        parts.extend(step.tokens_per_second.map(|rate| format!("{rate:.0} tokens/s")));
        parts.extend(self.seconds_left().map(|seconds| format!("{} left", output::duration(seconds))));
        parts.join(", ")
    }
}

/// The printable content of an event.
#[derive(Debug, PartialEq)]
pub(crate) enum Entry {
    /// A message.
    Message(String),
    /// A step's metrics.
    Step(Step),
}

fn read_step(event: &Value) -> Option<Step> {
    if event["type"] != "metrics" {
        return None;
    }
    let data = &event["data"];
    Some(Step {
        step: data["step"].as_u64()?,
        loss: data["train_loss"].as_f64()?,
        valid_loss: data["full_valid_loss"].as_f64().or_else(|| data["valid_loss"].as_f64()),
        tokens_per_second: data["tokens_per_second"].as_f64(),
        at: event["created_at"].as_i64().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metrics(id: &str, step: u64, loss: f64, at: i64) -> Value {
        json!({"id": id, "type": "metrics", "message": "m", "created_at": at,
               "data": {"step": step, "total_steps": 10, "train_loss": loss, "tokens_per_second": 800.2}})
    }

    #[test]
    fn the_rate_gives_the_time_left() {
        let mut story = Story::default();
        assert_eq!(story.seconds_left(), None);
        story.take(&metrics("a", 1, 2.0, 100));
        story.take(&metrics("b", 3, 1.0, 110));
        assert_eq!(story.seconds_left(), Some(35));
        assert_eq!(story.sentence(), "loss 1.0000, 800 tokens/s, 35 s left");
        assert_eq!(story.curve(10), "█▁");
    }

    #[test]
    fn a_step_done_again_replaces_its_elder() {
        let mut story = Story::default();
        for (id, step) in [("a", 1), ("b", 2), ("c", 3), ("d", 2)] {
            story.take(&metrics(id, step, 1.0, 0));
        }
        assert_eq!(story.steps.iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn an_event_is_reported_once() {
        let mut story = Story::default();
        let event = json!({"id": "a", "type": "message", "message": "queued"});
        assert_eq!(story.take(&event), Some(Entry::Message("queued".into())));
        assert_eq!(story.take(&event), None);
    }
}
