//! Metrics of runs: the trainers' progress, as the API receives it, and their ends.

use super::metric::metrics;

/// The bounds of the times of steps, from 10 ms to 10 minutes.
const STEP_SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// The bounds of measured values divided by predicted ones.
const RATIOS: &[f64] = &[0.25, 0.5, 0.75, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.25, 1.5, 2.0, 4.0];

metrics! {
    /// Optimizer steps.
    TRAINING_STEPS: Counter = "attune_training_steps_total" [];
    /// Tokens of the steps.
    TRAINING_TOKENS: Counter = "attune_training_tokens_total" [];
    /// Tokens of the steps that have a loss.
    TRAINED_TOKENS: Counter = "attune_training_trained_tokens_total" [];
    /// Duration of a step.
    STEP_TIME: Histogram = "attune_training_step_seconds" ["device"] in STEP_SECONDS;
    /// Checkpoints.
    CHECKPOINTS: Counter = "attune_checkpoints_total" [];
    /// Size of the files of checkpoints.
    CHECKPOINT_BYTES: Counter = "attune_checkpoint_bytes_total" [];
    /// Adapter versions that runs published.
    ADAPTERS_PUBLISHED: Counter = "attune_adapters_published_total" [];
    /// Measured peak memory of a run divided by the predicted one, at its end.
    MEMORY_RATIO: Histogram = "attune_memory_ratio" ["device"] in RATIOS;
    /// Measured duration of a run divided by the predicted one, for runs that ended their job in its first attempt.
    DURATION_RATIO: Histogram = "attune_duration_ratio" ["device"] in RATIOS;
    /// Runs that ended without publishing, and the job's state afterwards.
    RUNS_LOST: Counter = "attune_runs_lost_total" ["cause", "job"];
    /// Rungs of the memory ladder.
    MEMORY_RUNGS: Counter = "attune_memory_rungs_total" ["rung"];
}
