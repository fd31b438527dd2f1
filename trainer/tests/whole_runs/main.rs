//! Whole runs against a small platform over HTTP: in this process, or in a separate one if they are to be killed.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers may panic as its tests do")]

mod checkpoints;
mod continuing;
mod early_stopping;
mod gate;
mod going_back;
mod grading;
mod kill_points;
mod learning_rate;
mod memory_cases;
mod memory_report;
mod micro_batches;
mod out_of_memory;
mod pace_cases;
mod pace_report;
mod platform;
mod runs;
mod tiny;

use attune_domain::{
    digest::Sha256,
    run::{RunEvent, StepMetrics},
    spec::{
        Auto, Requested,
        request::{AdapterFields, Hyperparameters, TrainerFields},
    },
};
use tempfile::TempDir;

use platform::Platform;

pub(crate) const FACTORS: &str = "adapter_model.safetensors";

pub(crate) fn asked() -> Requested {
    Requested {
        hyperparameters: Hyperparameters {
            n_epochs: Auto(Some(3)),
            batch_size: Auto(Some(5)),
            ..Hyperparameters::default()
        },
        adapter: AdapterFields { rank: Some(4), ..AdapterFields::default() },
        trainer: TrainerFields {
            learning_rate: Some(Auto(Some(5e-3))),
            checkpoint_every_steps: Some(4),
            ..TrainerFields::default()
        },
        ..Requested::default()
    }
}

/// Returns the usual request with changes.
pub(crate) fn asked_with(change: impl FnOnce(&mut Requested)) -> Requested {
    let mut asked = asked();
    change(&mut asked);
    asked
}

pub(crate) async fn tiny_world() -> (Platform, TempDir) {
    let (platform, folder) = (Platform::start().await, tempfile::tempdir().unwrap());
    tiny::model(&folder.path().join("model"), 0.1);
    (platform, folder)
}

pub(crate) fn steps(events: &[RunEvent]) -> Vec<&StepMetrics> {
    events.iter().filter_map(|e| if let RunEvent::Step(metrics) = e { Some(metrics) } else { None }).collect()
}

pub(crate) fn failure(events: &[RunEvent]) -> (String, String) {
    match events.last() {
        Some(RunEvent::Failed { code, message, .. }) => (code.clone(), message.clone()),
        other => panic!("a failure was expected, and {other:?} came"),
    }
}

pub(crate) fn published_sha256(events: &[RunEvent], name: &str) -> Sha256 {
    match events.last() {
        Some(RunEvent::Published { files, .. }) => files.iter().find(|f| f.name == name).unwrap().sha256,
        other => panic!("an adapter was expected, and {other:?} came"),
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no entry point that reads configuration")]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
