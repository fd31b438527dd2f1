//! `attune jobs`: fine-tuning jobs, from the request to the fine-tuned model. Read in this order.

/// The subcommands.
pub(crate) mod commands;

/// The request to create a job, from flags and a file.
mod create;

/// `attune jobs estimate`.
mod estimate;

/// The name of a dataset: a file ID, or a local path.
mod dataset_path;

/// A job as a file: YAML, JSON, or a Ludwig config.
mod document;

/// `attune jobs explain`.
mod explain;

/// The text line of a job event.
mod event_line;

/// `attune jobs events --follow`.
mod follow;

/// The place of a waiting job, as a line.
mod queue_line;

/// `attune jobs permissions`.
mod permissions;

/// The training flags of a job.
mod flags;

/// The flags of a job that limit its machine.
mod machine;

/// `attune lr-find`.
pub(crate) mod lr_find;

/// The state of a watched job, from its events.
mod story;

/// `attune jobs watch`.
mod watch;
