//! Tokenization, chat templates and loss masks. No tensors, no network.
//!
//! Uses the `tokenizers` and `minijinja` crates; its results equal those of transformers, as fixtures in `testdata/`
//! show. The modules are in reading order.

/// Text to token IDs.
pub mod tokenizer;

/// Token IDs to text, whole or streamed.
pub mod detokenizer;

/// The limits of chat templates.
mod sandbox;

/// The limits of tokenizer files.
mod tokenizer_bounds;

/// Python's `json.dumps`, the `tojson` filter of templates.
mod json;

/// Python's `str` and `repr`.
mod repr;

/// The message for a chat template that does not compile or render.
mod template_error;

/// Chat templates, rendered as transformers renders them.
pub mod template;

/// A model's folder: tokenizer, template, special tokens.
pub mod model;

/// The tokens and IDs that a model's files name.
pub mod token_ids;

/// Rows to token IDs and loss masks.
pub mod encode;

/// A file's rows to training sequences, under a job's policy.
pub mod rows;

/// Statistics and messages about the changes to a file's rows.
pub mod row_stats;

/// Duplicate rows.
pub mod repeats;

/// Statistics and quality warnings of a dataset.
pub mod report;

/// Detection of tool calls in an answer.
pub mod tools;

/// Tools for models whose template does not support them.
pub mod generic_tools;

/// The text of each token.
pub mod token_text;

/// Error types.
pub mod error;

/// A small model for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing;
