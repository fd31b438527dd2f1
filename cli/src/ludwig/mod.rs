//! A Ludwig LLM config turned into a job of Attune's, with a word on every key. Read in this order.

/// What became of each key.
pub(crate) mod report;

/// A section of a config, emptied key by key.
mod section;

/// The whole config to a job.
pub(crate) mod map;

/// Its trainer section.
mod trainer;

/// Prompts with columns in them.
pub(crate) mod template;

/// Rows of a table to rows of prompts and answers.
pub(crate) mod rows;
