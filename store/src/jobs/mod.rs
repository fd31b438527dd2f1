//! Jobs: their rows, events, checkpoints and validation.

/// Checkpoints: states to resume from, and to serve as models.
pub mod checkpoint;
/// Checkpoint permissions of other projects.
pub mod checkpoint_permission;
/// Jobs and their state machine.
pub mod job;
/// A job's events: messages and metrics.
pub mod job_event;
/// Pause and resume.
pub mod job_pause;
/// Lost runs, and how their jobs continue.
pub mod loss;
/// Limits on the unfinished work of one project.
pub mod unfinished;
/// Validation attempts of jobs' files.
pub mod validation;
/// The reason why a queued job is not placed yet.
pub mod waiting;
