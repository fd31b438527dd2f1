//! The mapping of a Ludwig LLM config to a job, with a report on every key. Read in this order.

/// The mapping of each key.
pub(crate) mod report;

/// A section of a config, consumed key by key.
mod section;

/// The mapping of a config to a job.
pub(crate) mod map;

/// The mapping of the trainer section.
mod trainer;

/// Prompt templates with columns.
pub(crate) mod template;

/// The conversion of a table's rows to rows of prompt and completion.
pub(crate) mod rows;
