//! `attune jobs`: fine-tuning, from the question to the tuned model. Read in this order.

/// The commands.
pub(crate) mod commands;

/// Flags and files to a request.
mod create;

/// What a job would take.
mod estimate;

/// A dataset that is named: an id, or a local path.
mod dataset_path;

/// A job as a file: YAML, JSON, or a Ludwig config.
mod document;

/// An event of a job as a line of text.
mod event_line;

/// A job's events as they come.
mod follow;

/// Who may use a checkpoint.
mod permissions;

/// Flags that say how a job trains.
mod flags;

/// A learning rate, found by a job that is cancelled as soon as it has found it.
pub(crate) mod lr_find;

/// What the events of a job say, gathered.
mod story;

/// Watching a job to its end.
mod watch;
