//! Jobs: their rows, events, checkpoints and validation.

/// Waiting jobs, as decisions about them need them.
pub mod candidate;
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
/// Traces of jobs.
pub mod job_trace;
/// Lost runs, and how their jobs continue.
pub mod loss;
/// Jobs whose run ran out of memory.
pub mod memory_ladder;
/// The state of the queue at one moment: the input of its plan.
pub mod snapshot;
/// The terms of jobs for their offers.
pub mod terms;
/// Limits on the unfinished work of one project.
pub mod unfinished;
/// Jobs whose queue message was lost, or is due again.
pub mod unpushed;
/// Validation attempts of jobs' files.
pub mod validation;
/// Positions, reasons and estimated starts of waiting jobs.
pub mod waiting;
