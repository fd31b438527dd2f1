//! Jobs: their rows, events, checkpoints and validation.

/// States from which a run can go on, and that answer like a tuned model.
pub mod checkpoint;
/// Who else may use a checkpoint.
pub mod checkpoint_permission;
/// Jobs, their one way of changing state, their events.
pub mod job;
/// What the user can read of a job's life.
pub mod job_event;
/// Runs that are given up, and what becomes of their jobs.
pub mod loss;
/// Jobs that wait, and jobs that go on again.
pub mod pausing;
/// Caps on the unfinished work of one project.
pub mod unfinished;
/// Checks of jobs' files.
pub mod validation;
/// Why a queued job is not placed yet.
pub mod waiting;
