//! `attune jobs`: fine-tuning, from the question to the tuned model. Read in this order.

/// The commands.
pub(crate) mod commands;

/// Flags and files to a request.
mod create;

/// What the events of a job say, gathered.
mod story;

/// Watching a job to its end.
mod watch;
