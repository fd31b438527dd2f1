//! The progress of runs, counted as metrics once a report is committed.

use attune_domain::run::{Blob, RunEvent};
use attune_process::metrics::{
    ADAPTERS_PUBLISHED, CHECKPOINT_BYTES, CHECKPOINTS, DURATION_RATIO, MEMORY_RATIO, RUNS_LOST, STEP_TIME,
    TRAINED_TOKENS, TRAINING_STEPS, TRAINING_TOKENS,
};
use attune_store::runs::{outcome::RunEnd, run::Run};

/// Counts the events of a report that were new. `end`: the end of the run, if one of them is a last event.
pub(crate) fn count(run: &Run, events: &[RunEvent], end: Option<RunEnd>) {
    let device = serde_json::to_value(run.plan.placement.device).unwrap_or_default();
    let device = device.as_str().unwrap_or("other");
    for event in events {
        progressed(device, event);
        if let Some(end) = end.filter(|_| event.is_last()) {
            ended(run, device, event, end);
        }
    }
}

fn progressed(device: &str, event: &RunEvent) {
    match event {
        RunEvent::Step(step) => {
            TRAINING_STEPS.inc([]);
            TRAINING_TOKENS.add([], step.tokens as f64);
            TRAINED_TOKENS.add([], step.trained_tokens as f64);
            STEP_TIME.observe([device], step.step_ms as f64 / 1000.0);
        }
        RunEvent::Checkpointed { files, .. } => {
            CHECKPOINTS.inc([]);
            CHECKPOINT_BYTES.add([], bytes(files));
        }
        _ => {}
    }
}

fn bytes(files: &[Blob]) -> f64 {
    files.iter().map(|file| file.bytes.0 as f64).sum()
}

fn ended(run: &Run, device: &str, event: &RunEvent, end: RunEnd) {
    let cause = match event {
        RunEvent::Published { peak_memory, .. } => {
            ADAPTERS_PUBLISHED.inc([]);
            MEMORY_RATIO.observe([device], peak_memory.0 as f64 / run.plan.predicted_peak.0.max(1) as f64);
            if let Some(ratio) = end.duration_ratio {
                DURATION_RATIO.observe([device], ratio);
            }
            return;
        }
        RunEvent::OutOfMemory { peak_memory, .. } => {
            MEMORY_RATIO.observe([device], peak_memory.0 as f64 / run.plan.predicted_peak.0.max(1) as f64);
            "memory"
        }
        RunEvent::Failed { passing: true, .. } => "circumstances",
        RunEvent::Failed { passing: false, .. } => "job",
        // A run that stops as instructed is not lost.
        _ => return,
    };
    RUNS_LOST.inc([cause, end.job_state.name()]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attune_domain::{
        bytes::Bytes,
        id::{JobId, NodeId, RunId},
        job::JobState,
        placement::Placement,
        run::{Plan, StepMetrics},
    };
    use attune_process::metrics::render;
    use attune_store::runs::run::RunState;
    use uuid::Uuid;

    use super::*;

    fn run() -> Run {
        Run {
            run_id: RunId::new(Uuid::nil()),
            job_id: JobId::new(Uuid::nil()),
            node_id: NodeId::new(Uuid::nil()),
            attempt: 1,
            run_lease: 1,
            plan: Plan {
                micro_batch_size: 1,
                micro_batch_tokens: 1,
                checkpointing: false,
                threads: 1,
                predicted_peak: Bytes(1000),
                placement: Placement::default(),
            },
            resume_id: None,
            heartbeat_seconds: 10,
            state: RunState::Running,
        }
    }

    #[test]
    fn progress_and_the_end_are_counted() {
        let step = StepMetrics {
            step: 1,
            total_steps: 2,
            train_loss: 1.0,
            tokens: 100,
            trained_tokens: 40,
            step_ms: 1500,
            peak_memory: Bytes(10),
            metrics: BTreeMap::new(),
        };
        let lost = RunEvent::OutOfMemory { message: "full".into(), peak_memory: Bytes(1200) };
        let end = RunEnd { job_state: JobState::Queued, duration_ratio: Some(2.0) };
        count(&run(), &[RunEvent::Step(step.clone()), RunEvent::Step(step), lost], Some(end));
        let text = render();
        for line in [
            "attune_training_steps_total 2.0",
            "attune_training_tokens_total 200.0",
            "attune_training_trained_tokens_total 80.0",
            r#"attune_training_step_seconds_sum{device="cpu"} 3.0"#,
            r#"attune_memory_ratio_sum{device="cpu"} 1.2"#,
            r#"attune_runs_lost_total{cause="memory",job="queued"} 1.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("attune_duration_ratio"), "the run did not end its job");
    }
}
